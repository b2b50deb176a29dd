"""Compiled loops and the torch operators that are their twins give the same bits."""

import math
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel import compiled
from funnel.families import rehearsal
from funnel.families.ensemble import Ensemble, Layout
from funnel.families.forests.forest import LOOPS, NODES, Tree, forest_logits, replace_tree
from funnel.families.forests.growing import Grown, bins_of, grow, quantiles
from funnel.families.interface import Examples, Given, Scaling
from funnel.families.memory import NEWEST, Memory
from funnel.families.neighbours import EXPERTS, by_operators, integer_products, set_apart
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Classes, Outcome

pytest.importorskip("numba")

SPECIAL = [0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, 3e38, 1e-45]
"""Numbers that are easily mistaken."""
Result = TypeVar("Result")
seeds = st.integers(0, 1 << 20)
CPU = torch.device("cpu")


def classes_of(count: int, opened: int | None = None) -> Classes:
    return Classes(torch.arange(count) < (count if opened is None else opened))


OUTCOMES: dict[str, Outcome] = {
    "two": classes_of(2),
    "three": classes_of(3, 2),
    "twelve": classes_of(12, 11),
    "numbers": Numbers((), CPU),
    "quantiles": Numbers((0.1, 0.5, 0.9), CPU),
}
outcomes = st.sampled_from(sorted(OUTCOMES))


def twice(function: Callable[[], Result]) -> tuple[Result, Result]:
    """Return what a function gives by compiled loops, and by operators."""
    assert compiled.loops(LOOPS) is not None
    fast = function()
    with compiled.plainly():
        return fast, function()


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same bits, but for those of NaN."""
    nan = one.isnan() & other.isnan()
    return one.shape == other.shape and bool((nan | (one == other)).all())


def numbers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Return numbers with ties, and special ones among them."""
    found = torch.randn(shape, generator=generator).mul(4).round().div(4)
    chosen = torch.rand(shape, generator=generator) < 0.1
    places = torch.randint(len(SPECIAL), shape, generator=generator)
    return torch.where(chosen, torch.tensor(SPECIAL)[places], found)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 60), st.integers(1, 9))
def test_bins_of_any_numbers_are_those_of_a_binary_search(seed: int, m: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    columns, edges = numbers(generator, width, m), quantiles(numbers(generator, width, 50))
    slots = torch.randint(m, (max(1, m // 2),), generator=generator)
    chosen = torch.randperm(width, generator=generator)[: max(1, width - 1)]
    fast, plain = twice(lambda: bins_of(columns, edges, slots, chosen))
    assert torch.equal(fast, plain)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 300), st.integers(1, 6), outcomes)
def test_a_tree_is_grown_to_the_same_bits(seed: int, m: int, k: int, name: str) -> None:
    generator, outcome = torch.Generator().manual_seed(seed), OUTCOMES[name]
    bins = torch.randint(32, (k, m), generator=generator).byte()
    labels = labels_of(outcome, torch.randn(m, generator=generator))
    weights = torch.rand(m, generator=generator).mul(3).round()
    outputs = torch.randn(m, outcome.outputs, generator=generator).mul(3)
    if isinstance(outcome, Classes):
        outputs = outputs.masked_fill(~outcome.is_open, -math.inf)
    edges = torch.randn(k, 31, generator=generator).sort().values
    chosen = torch.arange(k) + 5
    slopes = outcome.slopes(labels, weights, outputs, generator)
    fast, plain = twice(lambda: grow(bins, slopes, weights, chosen, edges))
    for name, mine, theirs in zip(Grown._fields, fast, plain, strict=True):
        assert same(mine, theirs), name


def labels_of(outcome: Outcome, numbers: torch.Tensor) -> torch.Tensor:
    """Return labels that follow from numbers."""
    if not isinstance(outcome, Classes):
        return numbers
    return (numbers > 0).long() + ((numbers > 1) & outcome.is_open[2:3].any())


def a_forest(generator: torch.Generator, trees: int, width: int, classes: int) -> Tree:
    features = torch.randint(width, (trees, NODES), generator=generator)
    thresholds = numbers(generator, trees, NODES)
    return Tree(features, thresholds, torch.randn(trees, NODES + 1, classes, generator=generator))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 40), st.integers(0, 30), st.sampled_from([2, 3, 10]))
def test_forests_answer_and_are_changed_alike(seed: int, n: int, trees: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    forest, columns = a_forest(generator, 30, 4, classes), numbers(generator, 4, n)
    fast, plain = twice(lambda: forest_logits(*forest, columns.t(), trees))
    assert same(fast, plain)
    slots = torch.randperm(n, generator=generator)[: max(1, n - 2)]
    old, new = (Tree(*(part[place] for part in forest)) for place in (0, 1))
    before = torch.randn(n, classes, generator=generator)

    def replaced(gone: Tree | None) -> torch.Tensor:
        fitted = before.clone()
        replace_tree(fitted, columns, slots, gone, new)
        return fitted

    for gone in (old, None):
        assert torch.equal(*twice(lambda gone=gone: replaced(gone)))


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 400), st.integers(1, 9), st.sampled_from([2, 5]), st.booleans())
def test_neighbours_are_found_and_vote_alike_where_distances_are_equal_or_missing(
    seed: int, m: int, n: int, classes: int, whole: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    products = torch.randint(-9, 9, (n, m), generator=generator)
    norms, own = (torch.randint(20, (k,), generator=generator) for k in (m, n))
    kind = torch.int32 if whole else torch.float32
    products, norms, own = (t.to(kind) for t in (products, norms, own))
    if not whole:
        products.view(-1)[::17] = math.nan
    newest = torch.randperm(m, generator=generator)[: max(1, m // 3)]
    labels = torch.randint(classes, (m,), generator=generator)
    weights = torch.rand(m, generator=generator).round()
    outcome, prior = classes_of(classes), torch.arange(1.0, classes + 1)
    loops = compiled.loops(LOOPS)
    assert loops is not None
    asked = (products, norms, own, newest, weights)
    for experts in EXPERTS.values():
        slots, votes = by_operators(*(t.clone() for t in asked), experts)
        counts, is_newest = (torch.tensor(part) for part in zip(*experts, strict=True))
        places, weighed = torch.zeros_like(slots), torch.zeros_like(votes)
        loops.nearest(*(t.numpy() for t in (*asked, counts, is_newest, places, weighed)))
        assert torch.equal(places, slots)
        assert same(weighed, votes)
        fast = torch.zeros(len(experts), n, classes)
        cast = (labels, slots, votes, outcome.alone(prior), counts, fast)
        loops.tally(*(t.numpy() for t in cast))
        each = zip(labels[slots], votes, experts, strict=True)
        plain = [outcome.voted(label, vote, prior, k) for label, vote, (k, _) in each]
        assert same(fast, torch.stack(plain))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 300), st.integers(0, 5), st.booleans())
def test_codes_set_examples_apart_alike(seed: int, m: int, c: int, whole: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    products, halves = torch.randn(4, m, generator=generator), torch.rand(c, generator=generator)
    if whole:
        products, halves = (t.mul(1_000).int() for t in (products, halves))
    else:
        products[0, ::7] = math.nan
    mine, theirs = (torch.randint(3, (k, c), generator=generator).float() for k in (4, m))
    mine[1:2], theirs[::5] = math.inf, math.inf

    def apart() -> torch.Tensor:
        found = products.clone()
        set_apart(found, mine, theirs.t(), halves)
        return found

    fast, plain = twice(apart)
    assert same(fast, plain)
    differ = (mine[:, None] != theirs).to(halves.dtype)
    torch.testing.assert_close(fast, products - (differ * halves).sum(dim=2), equal_nan=True,
                               check_dtype=False)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(1, 2_500))
def test_products_of_integers_are_exact(seed: int, m: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-120, 121, (k, width), generator=generator).char() for k in (3, m))
    fast, plain = twice(lambda: integer_products(a, b))
    assert torch.equal(fast, plain)
    assert torch.equal(plain.long(), a.long() @ b.long().t())


def test_the_memory_moves_rows_alike() -> None:
    def filled() -> torch.Tensor:
        memory = Memory(3, OUTCOMES["two"])
        for step in range(14):
            generator = torch.Generator().manual_seed(step)
            rows = numbers(generator, 700, 3)
            rows[rows.isnan()] = math.inf
            memory.add(rows, torch.zeros(700).long(), torch.ones(700), generator)
        return memory.rows.clone()

    assert torch.equal(*twice(filled))


@pytest.mark.parametrize("has_ranks", [True, False])
@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=list(OUTCOMES))
def test_all_families_learn_to_the_same_bits(outcome: Outcome, has_ranks: bool) -> None:
    """Across the end of the ring, with missing numbers, batches of one row, and fast ones."""

    def learned() -> dict[str, torch.Tensor]:
        ensemble = Ensemble(Layout(1, 4, 1, 4, compares_codes=True), outcome, has_ranks)
        unit = torch.ones(5)
        for step, n in enumerate([1, 1, 60, 300, *[800] * 6, 1, 100]):
            generator = torch.Generator().manual_seed(step)
            raw = torch.randn(n, 5, generator=generator)
            raw[:, 0] = torch.randint(3, (n,), generator=generator)
            raw[::3, 1] = math.inf
            labels = labels_of(outcome, raw[:, 2] + raw[:, 3])
            given_ = Given(raw, Scaling(0.1 * unit, 2 * unit))
            examples = Examples(given_, labels, torch.ones(n), (7, step))
            if step % 4 == 3:
                ensemble.skip(examples)
            else:
                ensemble.catch_up(given_.scaling)
                ensemble.learn(examples, ensemble.answers(given_))
        answers = ensemble.frozen().answers(given_).answers
        return {"answers": answers} | {k: v.clone() for k, v in ensemble.tensors().items()}

    fast, plain = twice(learned)
    assert int(fast["memory.counts"][0]) == NEWEST
    for name, tensor in fast.items():
        assert same(tensor, plain[name]), name


@pytest.mark.parametrize("task", ["", "multiclass", "binary", "regression", "quantile"])
def test_a_rehearsal_chooses_compiled_loops(task: str) -> None:
    assert rehearsal.rehearse(task) == "compiled loops"


def test_loops_that_give_other_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_refused", set())
    loops = compiled.loops(LOOPS)
    right = loops.tally

    def wrong(*arrays: object) -> None:
        right(*arrays)
        arrays[-1][:] *= 1.0001

    monkeypatch.setattr(loops, "tally", wrong)
    assert "other bits in answers" in rehearsal.rehearse()
    assert compiled.loops(LOOPS) is None


def test_without_numba_operators_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "is_installed", lambda: False)
    assert compiled.loops(LOOPS) is None
    assert "numba is not installed" in rehearsal.rehearse()


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    whole = numba.njit

    def njit(cache: bool, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return whole(cache=False, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled.compiled(lambda x: x + 1)(2) == 3
