"""The memory holds the newest examples, and a uniform sample of those before them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.families.memory import NEWEST, SAMPLED, Memory
from funnel.families.outcomes import Classes

TWO = Classes(torch.ones(2, dtype=torch.bool))


def filled(sizes: list[int], seed: int = 0) -> Memory:
    """Return a memory of examples whose only number is their number in the stream."""
    memory, first = Memory(1, TWO), 0
    for step, n in enumerate(sizes):
        rows = torch.arange(first, first + n).float()[:, None]
        generator = torch.Generator().manual_seed(seed * 1_000 + step)
        memory.add(rows, rows[:, 0].long() % 2, torch.ones(n), generator)
        first += n
    return memory


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 1_024), min_size=1, max_size=14))
def test_the_newest_examples_are_all_there_in_order(sizes: list[int]) -> None:
    memory, total = filled(sizes), sum(sizes)
    newest = memory.rows[memory.newest(NEWEST), 0]
    expected = torch.arange(total - 1, max(-1, total - 1 - NEWEST), -1).float()
    assert torch.equal(newest, expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 1_024), min_size=8, max_size=14))
def test_the_sample_has_each_older_example_at_most_once(sizes: list[int]) -> None:
    memory, older = filled(sizes), max(0, sum(sizes) - NEWEST)
    sample = memory.rows[NEWEST : memory.used, 0] if older else memory.rows[:0, 0]
    assert len(sample) == min(older, SAMPLED)
    assert len(sample.unique()) == len(sample)
    assert bool((sample < older).all())


def test_the_sample_is_uniform_over_all_older_examples() -> None:
    sample = filled([1_000] * 24).rows[NEWEST:, 0]
    counts = torch.histc(sample, 10, 0, 24_000 - NEWEST)
    assert float((counts - SAMPLED / 10).abs().max()) < 5 * (SAMPLED / 10) ** 0.5


def test_what_is_kept_for_each_slot_follows_its_example() -> None:
    memory = Memory(1, TWO)
    kept = torch.full((NEWEST + SAMPLED,), -1.0)
    for step in range(12):
        rows = torch.arange(1_000 * step, 1_000 * (step + 1)).float()[:, None]
        generator = torch.Generator().manual_seed(step)
        moved = memory.add(rows, rows[:, 0].long() % 2, torch.ones(1_000), generator)
        moved.follow(kept, rows[:, 0])
    assert torch.equal(kept[: memory.used], memory.rows[: memory.used, 0])


def test_equal_draws_give_equal_memories() -> None:
    one, other, third = filled([700] * 12), filled([700] * 12), filled([700] * 12, seed=1)
    assert torch.equal(one.rows, other.rows)
    assert not torch.equal(one.rows, third.rows)


@pytest.mark.parametrize("n", [1, 500, 5_000])
def test_quantiles_are_those_of_the_newest(n: int) -> None:
    sizes = [min(1_000, n - k) for k in range(0, n, 1_000)]
    edges = filled(sizes).edges[0]
    assert bool((edges.diff() >= 0).all())
    expected = torch.arange(max(0, n - NEWEST), n).float().quantile(torch.linspace(0, 1, 33)[1:-1])
    assert float((edges - expected).abs().max()) <= 0.35 * min(n, NEWEST)
