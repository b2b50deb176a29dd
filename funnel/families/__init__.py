"""Families of experts beyond one pool of networks, and the mixture of all.

`Family` is the interface of a family that a user adds.
"""

from funnel.families.interface import Family, Growing

__all__ = ["Family", "Growing"]
