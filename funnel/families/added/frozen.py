"""Families that a user adds, at one version, and how a thread answers from them.

A family answers from tensors that it holds, so each thread has an instance of its own, into which
the tensors of a version are copied. No thread meets those that are learned.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from funnel.families.added.answers import Maker, answers_of, calling
from funnel.families.interface import Family
from funnel.families.outcomes import Outcome


class Frozen(NamedTuple):
    """All that answering needs, at one version; nothing changes it."""

    maker: Maker
    features: int
    outcome: Outcome
    state: Mapping[str, Tensor]
    """Its tensors."""
    unit: Tensor
    """The unit of the numbers that it answers (`funnel.families.added.answers.unit_of`)."""


class Instances:
    """Instances that answer from frozen families; for one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Frozen, Family]] = {}
        """The last version of each family, by name, and the instance that holds it."""

    def answers(self, frozen: Frozen, rows: Tensor) -> Tensor:
        """Return the answers of a family, fp32 [K, n, A]; NaN where an expert knows nothing.

        Args:
            frozen: the family.
            rows: fp32 [n, d].

        Raises:
            Misfit: they have another shape or type. The family may raise anything else.
        """
        name = frozen.maker.name
        known = self._known.pop(name, None)  # one that fails as it is copied into is not kept
        if known is None or known[0] is not frozen:
            known = frozen, self._holding(frozen, known)
        self._known[name] = known
        return answers_of(known[1], rows, frozen.outcome, frozen.unit)

    @staticmethod
    def _holding(frozen: Frozen, known: tuple[Frozen, Family] | None) -> Family:
        """Return an instance that holds a version: the last one, if it is as large."""
        with calling():
            family = None if known is None else known[1]
            if family is None or known is None or _size(known[0]) != _size(frozen):
                family = frozen.maker(frozen.features, frozen.outcome)
            for name, tensor in family.tensors().items():
                tensor.copy_(frozen.state[name])
            return family


def _size(frozen: Frozen) -> tuple[Maker, int, int]:
    return frozen.maker, frozen.features, frozen.outcome.outputs
