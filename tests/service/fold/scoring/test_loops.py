"""Compiled loops and the torch operators that are their twins give the same bits."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from funnel import compiled
from service import rehearsal
from service.fold.calibration import Calibration, calibrated
from service.fold.scoring.classification import LOOPS, Scores
from service.fold.scoring.floors import MOST_EXACT, Floors
from service.fold.scoring.loops import Floats
from service.fold.state import State
from service.fold.step import Fold
from tests.support.named import a_row_spec, a_row_state, extend, some_rows
from tests.support.states import CPU, HYPERPARAMETERS, a_batch, a_spec

pytest.importorskip("numba")

FAMILIES = "funnel.families.kernels"
Result = TypeVar("Result")
Tensors = dict[str, Tensor]
seeds = st.integers(0, 1 << 20)
rooms = st.sampled_from([(2, 2), (2, 4), (3, 3), (5, 8), (12, 16), (70, 128)])
"""Classes that are open, and all that there is room for."""
YES, NO = torch.tensor(True), torch.tensor(False)


def twice(function: Callable[[], Result]) -> tuple[Result, Result]:
    """Return what a function gives by compiled loops, and by operators."""
    assert compiled.loops(LOOPS) is not None
    fast = function()
    with compiled.plainly():
        return fast, function()


def differing(one: Tensors, other: Tensors) -> list[str]:
    """Return the names of tensors that differ in a bit, except for those of NaN."""
    assert one.keys() == other.keys()
    return [k for k, tensor in one.items() if not same(tensor, other[k])]


def same(one: Tensor, other: Tensor) -> bool:
    nan = (one != one) & (other != other)
    signs = one.signbit() == other.signbit()
    return one.shape == other.shape and bool((nan | ((one == other) & signs)).all())


def answers(generator: torch.Generator, n: int, opened: int, room: int) -> Tensor:
    """Return probabilities, of which many are 0, 1 or equal."""
    odds = torch.randn(n, room, generator=generator)
    odds *= 10.0 ** torch.randint(-3, 4, (n, 1), generator=generator)
    odds[::3] = odds[::3].round()
    odds[:, opened:] = -torch.inf
    return odds.softmax(dim=1)


def copies(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@settings(max_examples=60, deadline=None)
@given(seeds, rooms, st.integers(1, 300), st.booleans())
def test_calibration_has_the_bits_of_operators(
    seed: int, room: tuple[int, int], n: int, levels: bool
) -> None:
    def learned() -> Tensors:
        generator, answered = torch.Generator().manual_seed(seed), []
        calibration = Calibration(room[0], CPU, room[1], levels)
        for k in range(6):
            given_ = answers(generator, n, *room)
            if k == 4:
                given_[0] = torch.nan
            labels = torch.randint(room[0], (n,), generator=generator)
            weights = 2.0 * torch.rand(n, generator=generator) if k % 2 else None
            keep = YES if k not in (2, 4) else NO
            finite = YES if k != 4 else NO
            predicted = given_.argmax(dim=1)
            answered.append(calibrated(room[0], given_, predicted, calibration.answer))
            calibration.learn(given_, predicted, labels, finite, keep, weights)
        return copies(calibration.tensors()) | {"answered": torch.cat(answered)}

    fast, plain = twice(learned)
    assert int(fast["scores.scored"]) == 5 * n
    assert not differing(fast, plain)


@settings(max_examples=60, deadline=None)
@given(seeds, rooms, st.integers(1, 300), st.booleans())
def test_floors_have_the_bits_of_operators(
    seed: int, room: tuple[int, int], n: int, is_old: bool
) -> None:
    def scored() -> Tensors:
        generator, floors = torch.Generator().manual_seed(seed), Floors(room[0], CPU, room[1])
        found = []
        if is_old:  # beyond what fp32 counts
            floors.counts[: room[0]] += MOST_EXACT // 3 + torch.arange(room[0])
            floors.tries.mul_(MOST_EXACT // 3)
        for k in range(6):
            labels = torch.randint(room[0], (n,), generator=generator)
            flags = YES if k != 2 else NO, YES if k not in (2, 4) else NO
            found.append(floors.observe(labels, *flags))
        return copies(floors.tensors()) | {"losses": torch.stack(found)}

    fast, plain = twice(scored)
    assert int(fast["scores.scored"]) == 5 * n
    assert not differing(fast, plain)


def test_floors_of_one_class_and_of_more_classes_later_have_the_bits_of_operators() -> None:
    def scored() -> Tensors:
        floors, found = Floors(1, CPU, 2), []
        for opened, room in ((1, 2), (2, 2), (3, 4)):
            floors.resize(opened, room)
            for k in range(3):
                labels = (torch.arange(40) + k) % opened
                found.append(floors.observe(labels, YES, YES))
        return copies(floors.tensors()) | {"losses": torch.stack(found)}

    fast, plain = twice(scored)
    assert not differing(fast, plain)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 2_500), rooms)
def test_scores_have_the_bits_of_operators_round_the_ring(
    seed: int, n: int, room: tuple[int, int]
) -> None:
    def scored() -> Tensors:
        generator, scores = torch.Generator().manual_seed(seed), Scores(room[0], CPU, room[1])
        scores.scored.fill_(9_990)
        scores.settled.fill_(9_990)
        for k in range(3):
            given_ = answers(generator, n, *room)
            labels = torch.randint(room[0], (n,), generator=generator)
            losses = -given_.gather(1, labels[:, None])[:, 0].log()
            scores.update(given_, given_.argmax(dim=1), labels, losses, YES if k != 1 else NO)
        return copies(scores.tensors())

    fast, plain = twice(scored)
    assert int(fast["scored"]) == 9_990 + 2 * n
    assert not differing(fast, plain)


@pytest.mark.parametrize("class_weights", ["", "balanced"])
def test_a_fold_has_the_bits_of_operators(class_weights: str) -> None:
    def folded() -> Tensors:
        rates = replace(HYPERPARAMETERS, class_weights=class_weights, loss_guard=2.0)
        state = State(replace(a_spec(optimizer="pool"), calibrate=True, no_change=True), rates, CPU)
        fold = Fold(state)
        reports = [fold.step(a_batch(seed=k, n=20)) for k in range(12)]
        floors = torch.tensor([report.floor for report in reports])
        return copies(state.tensors()) | {"reports": floors}

    fast, plain = twice(folded)
    assert not differing(fast, plain)


def test_a_fold_of_rows_whose_classes_come_one_by_one_has_the_bits_of_operators() -> None:
    def folded() -> Tensors:
        state = a_row_state(replace(a_row_spec(), calibrate=True))
        fold = Fold(state)
        for k in range(9):
            rows = some_rows(k, late=k > 4, classes=2 + (k > 4))
            extend(state, rows)
            fold.step(rows)
        return copies(state.tensors())

    fast, plain = twice(folded)
    assert not differing(fast, plain)


def test_a_rehearsal_chooses_compiled_loops() -> None:
    assert rehearsal.rehearse() == "compiled loops"


def test_loops_that_give_other_bits_are_refused_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "_refused", set())
    loops = compiled.loops(LOOPS)
    right = loops.persist

    def wrong(*arrays: Floats) -> None:
        right(*arrays)
        arrays[-2][1, 0] *= 1.001

    monkeypatch.setattr(loops, "persist", wrong)
    assert "other bits in floors" in rehearsal.rehearse()
    assert compiled.loops(LOOPS) is None
    assert compiled.loops(FAMILIES) is not None
