"""A shadow is promoted if it is better, and seldom if it is not, however often one looks."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from service.monitoring.challenge import BLOCK, LEVEL, Challenge
from service.monitoring.statistics import Statistics

Losses = dict[str, float]


def after(blocks: Sequence[Losses]) -> Statistics:
    """Return the statistics after some blocks, given the mean losses of the learners in each."""
    learners = {}
    for name in blocks[0]:
        loss = float(np.mean([block[name] for block in blocks]))
        scores = SimpleNamespace(scored=BLOCK * len(blocks), loss=loss)
        learners[name] = SimpleNamespace(scores=scores)
    return cast(Statistics, SimpleNamespace(learners=learners))


def promoted_after(blocks: Sequence[Losses]) -> tuple[int, str] | None:
    """Return after how many blocks which shadow is promoted."""
    challenge = Challenge()
    for count in range(1, len(blocks) + 1):
        if (name := challenge.note(after(blocks[:count]))) is not None:
            return count, name
    return None


def test_a_better_shadow_is_promoted_within_ten_blocks_and_a_worse_one_never() -> None:
    found = promoted_after([{"served": 0.5, "adam": 0.49, "sgd": 0.6}] * 50)
    assert found is not None
    assert (found[0] <= 10, found[1]) == (True, "adam")
    assert promoted_after([{"served": 0.5, "adam": 0.51}] * 200) is None
    assert promoted_after([{"served": 0.5, "adam": 0.5}] * 200) is None, "equals are not better"


@pytest.mark.parametrize("shadows", [1, 4])
def test_shadows_that_are_no_better_are_promoted_in_less_than_the_level(shadows: int) -> None:
    rng, wrong, runs = np.random.default_rng(0), 0, 300
    names = ["served", *(f"sgd:{k}" for k in range(1, shadows + 1))]
    for _ in range(runs):
        losses = rng.normal(size=(120, len(names))).tolist()
        wrong += promoted_after([dict(zip(names, own, strict=True)) for own in losses]) is not None
    assert wrong / runs <= LEVEL


def test_a_shadow_that_is_rarely_much_worse_is_not_promoted() -> None:
    usual, rare = {"served": 0.5, "adam": 0.49}, {"served": 0.5, "adam": 3.0}
    assert promoted_after([usual, rare, *[usual] * 60]) is None


def test_other_roles_and_fewer_examples_begin_the_evidence_again() -> None:
    challenge, better = Challenge(), {"served": 0.5, "adam": 0.4}
    for count in range(1, 6):
        assert challenge.note(after([better] * count)) is None
    other = {"served": 0.5, "original": 0.4}
    for count in range(6, 11):
        assert challenge.note(after([other] * count)) is None
    for count in range(1, 6):  # a state that was loaded again
        assert challenge.note(after([other] * count)) is None


def test_a_block_has_enough_examples() -> None:
    challenge = Challenge()
    one = after([{"served": 0.5, "adam": 0.4}])
    assert challenge.note(one) is None
    for _ in range(1_000):  # nothing new is no evidence
        assert challenge.note(one) is None
