"""Calibration: it corrects, costs nothing, changes no label, and is part of the fold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from service.fold.calibration import PRIOR, RATE, SHARE, Calibration, calibrated
from service.fold.scoring.classification import Scores
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Spec
from service.fold.state import State
from service.fold.step import Fold
from tests.support.named import a_row_spec, a_row_state, some_rows
from tests.support.states import CPU, HYPERPARAMETERS, a_batch, a_spec, same_tensors, step

YES = torch.tensor(True)


def stream(
    classes: int, slope: float, offset: float = 0.0, seed: int = 0, n: int = 20_000
) -> tuple[Tensor, Tensor]:
    """Return probabilities whose log odds are ``slope`` times too small, and labels."""
    random = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(n, classes, generator=random)
    true = slope * logits
    true[:, 1] += offset
    labels = torch.multinomial(true.softmax(dim=1), 1, generator=random).squeeze(1)
    return logits.softmax(dim=1), labels


def noisy(classes: int, noise: float, n: int = 20_000) -> tuple[Tensor, Tensor]:
    """Return probabilities of a model that knows nothing of a share of labels that are wrong."""
    random = torch.Generator().manual_seed(1)
    logits = 3.0 * torch.randn(n, classes, generator=random)
    true = torch.multinomial((4.0 * logits).softmax(dim=1), 1, generator=random).squeeze(1)
    others = (true + torch.randint(1, classes, (n,), generator=random)) % classes
    is_wrong = torch.rand(n, generator=random) < noise
    return logits.softmax(dim=1), torch.where(is_wrong, others, true)


def answers(
    given: Tensor, labels: Tensor, size: int = 100, levels: bool = True
) -> tuple[Tensor, Calibration]:
    """Return what is answered before each batch is learned."""
    calibration, found = Calibration(given.shape[1], CPU, levels=levels), []
    for p, y in zip(given.split(size), labels.split(size), strict=True):
        predicted = p.argmax(dim=1)
        found.append(calibrated(given.shape[1], p, predicted, calibration.answer))
        calibration.learn(p, predicted, y, YES, YES)
    return torch.cat(found), calibration


def log_loss(probabilities: Tensor, labels: Tensor) -> float:
    return float(-probabilities.gather(1, labels[:, None]).log().mean())


def gap(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error of the predicted class, in 15 bins of equal mass."""
    top, predicted = probabilities.max(dim=1)
    right = (predicted == labels).float()
    parts = [(top[i] - right[i]).mean().abs() * len(i) for i in top.argsort().tensor_split(15)]
    return float(sum(parts) / len(top))


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("slope", [0.5, 2.0])
def test_probabilities_that_are_too_sure_or_not_sure_enough_are_corrected(
    classes: int, slope: float, levels: bool
) -> None:
    given, labels = stream(classes, slope)
    found, _ = answers(given, labels, levels=levels)
    before, after = (gap(p[5_000:], labels[5_000:]) for p in (given, found))
    assert before > 0.05
    assert after < before / 4  # no less where another class would have to be the likeliest
    assert log_loss(found, labels) < log_loss(given, labels) - 0.005


def test_a_shift_towards_a_class_of_two_is_corrected() -> None:
    given, labels = stream(2, 1.0, offset=1.0)
    found, calibration = answers(given, labels)
    assert calibration.answer[1] == pytest.approx(1.0, abs=0.15)
    assert log_loss(found, labels) < log_loss(given, labels) - 0.05


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("size", [10, 100])
def test_probabilities_that_are_right_lose_less_than_a_thousandth_of_a_nat(
    classes: int, size: int, levels: bool
) -> None:
    given, labels = stream(classes, 1.0)
    found, _ = answers(given, labels, size, levels)
    assert log_loss(found, labels) < log_loss(given, labels) + 1e-3


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_no_label_changes_and_answers_are_probabilities(classes: int) -> None:
    given, labels = stream(classes, 0.3, offset=3.0)
    found, calibration = answers(given, labels)
    predicted = given.argmax(dim=1, keepdim=True)
    assert (found.gather(1, predicted) >= found.amax(dim=1, keepdim=True) - 1e-6).all()
    assert torch.allclose(found.sum(dim=1), torch.ones(len(found)), atol=1e-5)
    edges = torch.eye(classes)
    kept = calibrated(classes, edges, torch.arange(classes), calibration.answer)
    assert torch.isfinite(kept).all()
    assert torch.allclose(kept.sum(dim=1), torch.ones(classes), atol=1e-5)
    lost = torch.full((2, classes), float("nan"))
    assert calibrated(classes, lost, torch.zeros(2).long(), calibration.answer).isnan().all()


def test_it_is_the_newton_step_and_the_weight_that_the_module_states() -> None:
    given, labels = stream(2, 0.7, n=1_000)
    _, calibration = answers(given, labels, 50, levels=False)
    curvature, theta, weight = PRIOR * np.eye(2), np.array([1.0, 0.0]), 0.5
    for p, y in zip(given.numpy().astype(float).reshape(-1, 50, 2),
                    labels.numpy().reshape(-1, 50), strict=True):  # fmt: skip
        x = np.stack([np.log(p[:, 1] / p[:, 0]), np.ones(50)])
        q = 1 / (1 + np.exp(-theta @ x))
        side = np.where(p[:, 1] > 0.5, np.maximum(q, 0.5), np.minimum(q, 0.5))
        gain = np.where(y == 1, np.log(side / p[:, 1]), np.log((1 - side) / p[:, 0])).sum()
        odds = np.log(weight / (1 - weight)) + RATE * gain
        dealt = 1 - (1 - SHARE) ** 50
        weight = (1 - dealt) / (1 + np.exp(-odds)) + dealt / 2
        curvature += (q * (1 - q) * x) @ x.T
        theta -= np.linalg.solve(curvature, x @ (q - y))
    assert calibration.answer.tolist() == pytest.approx([*theta, weight], rel=1e-4)
    assert calibration.curvature.numpy() == pytest.approx(curvature, rel=1e-4)


def test_with_a_third_input_it_is_the_bounded_step_that_the_module_states() -> None:
    given, labels = noisy(2, 0.2, n=1_000)
    _, calibration = answers(given, labels, 50)
    curvature, theta, steps = PRIOR * np.eye(3), np.array([1.0, 0.0, 0.0]), []
    for p, y in zip(given.numpy().astype(float).reshape(-1, 50, 2),
                    labels.numpy().reshape(-1, 50), strict=True):  # fmt: skip
        x = np.log(p[:, 1] / p[:, 0]).clip(-15, 15)
        x = np.stack([x, np.ones(50), 3 * np.tanh(2 * x)])
        q = 1 / (1 + np.exp(-theta @ x))
        curvature += (q * (1 - q) * x) @ x.T
        step = np.linalg.solve(curvature, x @ (q - y))
        share = min(1.0, 0.25 / abs(step).max())
        if theta[2] - share * step[2] > 0:
            theta -= share * step
            theta[0] = theta[0].clip(0.05, 4.0)
        else:
            theta -= [*np.linalg.solve(curvature[:2, :2], (x @ (q - y))[:2]), theta[2]]
            theta[0] = theta[0].clip(0.25, 4.0)
        steps.append((share, theta[2] > 0))
    assert {(share < 1, is_level) for share, is_level in steps} >= {(True, True), (False, True)}
    a, b, _, c = calibration.answer.tolist()
    assert [a, b, c] == pytest.approx(theta, rel=1e-4, abs=1e-6)
    assert calibration.curvature.numpy() == pytest.approx(curvature, rel=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("size", [10, 100])
def test_labels_that_are_wrong_however_sure_the_model_is_are_expected(
    classes: int, size: int
) -> None:
    given, labels = noisy(classes, 0.1)
    found, _ = answers(given, labels, size)
    line, _ = answers(given, labels, size, levels=False)
    own, other = (gap(p[5_000:], labels[5_000:]) for p in (found, line))
    assert own < 0.02 < other
    assert log_loss(found, labels) < log_loss(line, labels) - 0.005


def test_a_model_that_learns_slowly_loses_nothing_to_the_third_input() -> None:
    """Its probabilities are all small at first, where the third input is nearly constant."""
    random, state = torch.Generator().manual_seed(2), 0.0
    given, labels = [], []
    for k in range(100):
        logits = 4.0 * torch.randn(100, 10, generator=random)
        labels.append(torch.multinomial(logits.softmax(dim=1), 1, generator=random).squeeze(1))
        given.append((min(1.0, state + 0.01 * k) * logits).softmax(dim=1))
    p, y = torch.cat(given), torch.cat(labels)
    found, line = answers(p, y)[0], answers(p, y, levels=False)[0]
    assert log_loss(found, y) < log_loss(line, y) + 5e-3


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.45])
def test_a_surer_answer_stays_the_surer_one(noise: float) -> None:
    given, labels = noisy(2, noise, n=5_000)
    if noise == 0.45:  # the middle is sure, and the ends are not
        labels = torch.where((given[:, 1] - 0.5).abs() < 0.3, given.argmax(dim=1), labels)
    _, calibration = answers(given, labels)
    ones = torch.linspace(0.001, 0.999, 999)
    rising = torch.stack([1.0 - ones, ones], dim=1)
    found = calibrated(2, rising, rising.argmax(dim=1), calibration.answer)[:, 1]
    assert (found.diff() >= 0).all()


def test_a_batch_that_is_not_learned_changes_nothing() -> None:
    given, labels = stream(3, 0.5, n=200)
    _, calibration = answers(given, labels)
    before = [tensor.nan_to_num() for tensor in calibration.tensors().values()]
    no = torch.tensor(False)
    calibration.learn(given, given.argmax(dim=1), labels, no, no)
    after = [tensor.nan_to_num() for tensor in calibration.tensors().values()]
    assert all(map(torch.equal, before, after))


def test_a_third_class_begins_it_again_and_a_fourth_does_not() -> None:
    given, labels = stream(2, 0.5, n=1_000)
    _, calibration = answers(given, labels)
    calibration.resize(3, 4)
    assert calibration.answer.tolist() == [1.0, 0.0, 0.5, 0.0]
    given, labels = stream(3, 0.5, n=100)
    calibration.learn(given, given.argmax(dim=1), labels, YES, YES)
    before = calibration.answer.clone()
    calibration.resize(4, 4)
    assert torch.equal(before, calibration.answer)


@pytest.mark.parametrize("classes", [2, 3])
def test_raw_and_calibrated_answers_are_scored_on_the_same_examples(classes: int) -> None:
    given, labels = stream(classes, 0.4)
    calibration, raw = Calibration(classes, CPU), Scores(classes, CPU)
    for p, y in zip(given.split(100), labels.split(100), strict=True):
        predicted = p.argmax(dim=1)
        own = -p.gather(1, y[:, None]).squeeze(1).log()
        raw.update(p, predicted, y, own, YES)
        calibration.learn(p, predicted, y, YES, YES)
        for scores in (calibration.scores, raw):
            scores.settle()
    ours, theirs = calibration.scores.measure(), raw.measure()
    assert ours.scored == theirs.scored == len(labels)
    assert ours.correct == theirs.correct
    assert ours.loss < theirs.loss - 0.01
    assert ours.windows["10000"].ece < theirs.windows["10000"].ece / 3


def a_calibrated(optimizer: str = "pool") -> Spec:
    return replace(a_spec(optimizer=optimizer), calibrate=True, levels=True)


@pytest.mark.parametrize("optimizer", ["pool", "funnel"])
def test_answers_differ_from_those_without_only_in_their_probabilities(optimizer: str) -> None:
    states = [State(replace(a_spec(optimizer=optimizer), calibrate=c), HYPERPARAMETERS, CPU)
              for c in (False, True)]  # fmt: skip
    for k in range(60):
        for state in states:
            step(state, a_batch(k, shift=k % 2))
    plain, other = states
    shared = {k: v for k, v in other.tensors().items() if not k.startswith("calibration.")}
    assert same_tensors(plain.tensors(), shared)
    rows = a_batch(999, 200).features
    (labels, raw), (same, found) = (
        Evaluator(state.served)(Snapshot.of(state), rows) for state in states
    )
    assert torch.equal(labels, same)
    assert not torch.allclose(raw, found, atol=1e-3)


@pytest.mark.parametrize("levels", [False, True])
def test_a_resumed_calibration_goes_on_exactly(levels: bool) -> None:
    spec = replace(a_calibrated(), levels=levels)
    whole = State(spec, HYPERPARAMETERS, CPU)
    for k in range(10):
        step(whole, a_batch(k))
    resumed = State(spec, HYPERPARAMETERS, CPU)
    resumed.load(whole.tensors() | whole.drift.tensors(), whole.version, whole.examples)
    for state in (whole, resumed):
        for k in range(10, 20):
            step(state, a_batch(k))
    assert torch.equal(
        whole.tensors()["calibration.answer"], resumed.tensors()["calibration.answer"]
    )
    assert whole.tensors()["calibration.answer"][2] != 0.5


def test_it_follows_a_model_of_rows_whose_classes_appear() -> None:
    state = a_row_state(replace(a_row_spec(), calibrate=True))
    fold = Fold(state)
    for k in range(12):
        rows = some_rows(k, classes=2 if k < 6 else 3)
        if changes := state.schema.changes_for(rows):
            state.reshape(changes)
        fold.step(rows)
    assert state.calibration is not None
    assert state.calibration.classes == len(state.schema.labels) == 4
    _, found = Evaluator(state.served)(Snapshot.of(state), some_rows(99))
    assert found.shape[1] == 4
    assert torch.allclose(found.sum(dim=1), torch.ones(len(found)), atol=1e-5)


def test_a_spec_that_was_recorded_without_the_field_does_not_calibrate() -> None:
    fields = a_spec().fields()
    assert "calibrate" not in fields
    assert not Spec.of(fields).calibrate
    assert Spec.of(a_calibrated().fields()).calibrate
    assert Spec.of(a_calibrated().fields()).levels
    old = replace(a_calibrated(), levels=False)
    assert "levels" not in old.fields()
    assert not Spec.of(old.fields()).levels
    assert old.differences(a_calibrated()) == []
