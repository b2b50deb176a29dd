"""Families of experts beyond one pool of networks, and the mixture of all."""
