"""The fold: one step as a function of state and batch."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from funnel import Adagrad, Funnel
from funnel.graphs.traced import Traced
from service.fold import trial
from service.fold.networks import BUILT_IN, ModelError
from service.fold.spec import FOLD_VERSION, MAX_EXPERTS, OPTIMIZERS, Spec
from service.fold.state import State
from service.fold.step import Fold
from service.log.position import ORIGIN, Position, Progress
from service.trainer.checkpoint import Checkpoint
from streams.batch import Batch
from tests.support.gpu import waiting_is_an_error
from tests.support.states import (
    CPU,
    HYPERPARAMETERS,
    Drawing,
    a_batch,
    a_spec,
    a_state,
    same_tensors,
    step,
)

RESTLESS = "tests.golden.restless:Restless"
MODELS = ("logistic", "mlp", RESTLESS)
PARTS = ("_walk", "_take")
"""Parts of a pool's step that are traced."""
PROGRESS = Progress("uuid", 0, 0, Position(ORIGIN), 0, 0, 0, 0)


def copied(state: State) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in state.tensors().items()}


@pytest.mark.parametrize(("model", "optimizer"), list(itertools.product(MODELS, OPTIMIZERS)))
def test_equal_batches_make_equal_states(model: str, optimizer: str) -> None:
    one, other = (State(a_spec(model, optimizer), HYPERPARAMETERS, CPU) for _ in range(2))
    for k in range(5):
        torch.manual_seed(k)  # what others drew in between does not matter
        step(one, a_batch(k))
    for k in range(5):
        torch.manual_seed(k + 100)
        step(other, a_batch(k))
    assert same_tensors(one.tensors(), other.tensors())


def untrace(fold: Fold) -> None:
    """Run every part of a step eagerly."""
    for learner, name in ((fold._whole, "observe"), *((fold.state.served.pool, n) for n in PARTS)):
        setattr(learner, name, getattr(learner, name).function)


def has_renewed(state: State) -> bool:
    """Return whether an expert was renewed at a shift."""
    steps = state.tensors()[next(k for k in state.tensors() if k.endswith(".step"))]
    return bool((steps < steps.max()).any())


@pytest.mark.parametrize(("model", "optimizer"), list(itertools.product(BUILT_IN, OPTIMIZERS)))
def test_traced_steps_are_the_eager_ones_bit_for_bit(model: str, optimizer: str) -> None:
    one, other = (State(a_spec(model, optimizer), HYPERPARAMETERS, CPU) for _ in range(2))
    fold, eager = Fold(one), Fold(other)
    untrace(eager)
    for k in range(40):
        batch = a_batch(k, 20 if k % 4 else 7, shift=k // 30)
        if k == 9:
            batch.features[0, 0] = np.inf
        reports = fold.step(batch), eager.step(batch)
        assert float(reports[0].loss) == pytest.approx(float(reports[1].loss), abs=0, nan_ok=True)
    assert isinstance(fold._whole.observe, Traced)
    assert optimizer != "pool" or has_renewed(one)
    assert same_tensors(one.tensors(), other.tensors())


@pytest.mark.parametrize(("model", "optimizer"), list(itertools.product(MODELS, OPTIMIZERS)))
def test_a_resumed_state_goes_on_bit_for_bit(model: str, optimizer: str) -> None:
    whole, resumed = (State(a_spec(model, optimizer), HYPERPARAMETERS, CPU) for _ in range(2))
    for k in range(25):
        step(whole, a_batch(k))
    saved = Checkpoint.of(whole, PROGRESS)
    resumed.load(saved.tensors, saved.version, saved.examples)
    assert not any(
        a.data_ptr() == b.data_ptr()
        for a, b in zip(resumed.tensors().values(), whole.tensors().values(), strict=True)
    )
    for k in range(25, 35):
        step(whole, a_batch(k, shift=k // 30))
        step(resumed, a_batch(k, shift=k // 30))
    assert same_tensors(resumed.tensors(), whole.tensors())
    assert resumed.version == whole.version == 35


def test_each_step_draws_anew_and_a_resumed_one_draws_the_same() -> None:
    whole, resumed = (
        State(a_spec("tests.support.states:Drawing"), HYPERPARAMETERS, CPU) for _ in range(2)
    )
    Drawing.drawn.clear()
    for k in range(3):
        step(whole, a_batch(k))
    drawn = list(Drawing.drawn)
    assert len(set(drawn)) == 3
    resumed.load(whole.tensors(), 2, 40)
    step(resumed, a_batch(2))
    assert Drawing.drawn[3:] == drawn[2:]


def test_a_loaded_state_is_the_one_that_learns() -> None:
    """Not a twin of it: loading copies into the tensors that the next step reads."""
    state = a_state()
    for k in range(3):
        step(state, a_batch(k))
    saved = Checkpoint.of(state, PROGRESS)
    fresh = a_state()
    fresh.load(saved.tensors, saved.version, saved.examples)
    assert same_tensors(Checkpoint.of(fresh, PROGRESS).tensors, saved.tensors)


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_that_is_not_finite_changes_nothing_but_its_count(model: str) -> None:
    state = State(a_spec(model), HYPERPARAMETERS, CPU)
    for k in range(3):
        step(state, a_batch(k))
    with torch.no_grad():
        next(iter(state.served.pool.parameters.values())).view(-1)[0] = torch.inf
    before = copied(state)
    step(state, a_batch(3))
    after = copied(state)
    changed = {k for k in before if not same_tensors({k: before[k]}, {k: after[k]})}
    assert {k.rpartition(".")[2] for k in changed} == {"nonfinite"}
    assert (state.version, state.examples, int(state.served.nonfinite)) == (4, 80, 1)


@pytest.mark.parametrize("model", MODELS)
def test_scores_are_of_the_weights_before_the_update(model: str) -> None:
    state = State(a_spec(model, standardize=False), HYPERPARAMETERS, CPU)
    for k in range(4):
        batch = a_batch(k)
        learner = state.served
        _, probabilities = learner.evaluator()(learner.frozen(), torch.from_numpy(batch.features))
        logits = probabilities.log()
        expected = (logits.argmax(1).numpy() == batch.labels).mean()
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels))
        report = step(state, batch)
        assert float(report.accuracy) == pytest.approx(expected)
        assert float(report.loss) == pytest.approx(float(loss), rel=1e-5)


def test_it_learns() -> None:
    state = a_state()
    for k in range(100):
        step(state, a_batch(k))
    assert state.served.scores.read().rolling_accuracy > 0.85


def funnel_of_the_library(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    inner = Adagrad(initial_accumulator_value=0.1)
    return Funnel(parameters, inner, lr=0.03, gain_lr=0.03, scale_lr=0.03)


def adagrad_of_torch(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(parameters, lr=0.03, initial_accumulator_value=0.1)


@pytest.mark.parametrize(
    ("name", "make"), [("funnel", funnel_of_the_library), ("adagrad", adagrad_of_torch)]
)
def test_the_update_is_that_of_the_library(
    name: str, make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
) -> None:
    state = State(a_spec(optimizer=name, standardize=False), HYPERPARAMETERS, CPU)
    twin = torch.nn.Linear(6, 3)
    torch.nn.init.zeros_(twin.weight)
    torch.nn.init.zeros_(twin.bias)
    optimizer = make(list(twin.parameters()))
    for k in range(20):
        batch = a_batch(k)
        step(state, batch)
        optimizer.zero_grad()
        logits = twin(torch.from_numpy(batch.features))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels)).backward()
        optimizer.step()
    weight = state.served.pool.parameters["weight"][0]
    torch.testing.assert_close(weight, twin.weight, rtol=1e-5, atol=1e-7)


def test_one_wild_batch_does_not_poison_adagrads_sums() -> None:
    """One example scaled by 1e6 must not shrink the steps of its coordinates for ever."""

    def swallow(wild: bool) -> float:
        state = State(a_spec(standardize=False), HYPERPARAMETERS, CPU)
        for k in range(60):
            batch = a_batch(k)
            if wild and k == 30:
                batch = Batch(batch.features * np.float32(1e6), batch.labels)
            step(state, batch)
        return float(state.tensors()["optimizer.weight.inner.0.sum"].max())

    assert swallow(wild=True) < 30 * swallow(wild=False)


def test_new_rates_hold_from_the_next_step() -> None:
    changed, fresh = a_state(), a_state(hyperparameters=replace(HYPERPARAMETERS, lr=0.5))
    changed.set_hyperparameters(replace(HYPERPARAMETERS, lr=0.5))
    for state in (changed, fresh):
        step(state, a_batch(0))
    assert same_tensors(changed.tensors(), fresh.tensors())


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nowhere:Model", "cannot be imported"),
        ("tests.support.states:Missing", "cannot be imported"),
        (
            "tests.support.states:a_batch",
            "failed: it must take the parameters features and classes",
        ),
        ("torch.nn:Identity", "no parameters"),
        ("builtins:dict", "dict"),
        ("perceptron", "package.module:factory"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(factory: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        State(a_spec(factory), HYPERPARAMETERS, CPU)


def test_a_batch_at_which_the_model_raises_is_left_out() -> None:
    """Batch normalization cannot be trained on one example."""
    state = State(a_spec(RESTLESS), HYPERPARAMETERS, CPU)
    for k in range(3):
        step(state, a_batch(k))
    before = copied(state)
    report = step(state, a_batch(3, n=1))
    after = copied(state)
    changed = {k for k in before if not same_tensors({k: before[k]}, {k: after[k]})}
    assert {k.rpartition(".")[2] for k in changed} == {"nonfinite"}
    assert (state.version, int(state.served.nonfinite)) == (4, 1)
    assert math.isnan(report.loss)
    step(state, a_batch(4))
    assert int(state.served.nonfinite) == 1


def test_what_a_model_raises_is_said_at_the_start_and_where_only_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trial._warn.cache_clear()
    state = State(a_spec(RESTLESS), replace(HYPERPARAMETERS, shadow=("adagrad",)), CPU)
    [said] = [record.message for record in caplog.records]
    assert "raises on a single example" in said
    assert "--max-wait-ms" in said
    caplog.clear()
    for k in range(3):
        step(state, a_batch(k, n=1))
    assert "batch of 1, which is skipped: ValueError" in caplog.records[0].message
    traces = [record.exc_info is not None for record in caplog.records]
    assert sum(traces) == 2, "of the served one and of its shadow"
    assert len(traces) == 6


@pytest.mark.parametrize("error", [MemoryError, OSError, torch.OutOfMemoryError])
def test_a_machine_that_fails_is_not_the_batchs_fault(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another try may succeed, so that leaving the batch out would not replay."""
    state = State(a_spec(RESTLESS), HYPERPARAMETERS, CPU)
    step(state, a_batch(0))
    before = copied(state)

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise error("full")

    monkeypatch.setattr(state.served.pool.models.module, "forward", fail)
    with pytest.raises(error):
        step(state, a_batch(1))
    assert same_tensors(copied(state), before)
    assert state.version == 1


@pytest.mark.parametrize("optimizer", ["funnel", "pool"])
@pytest.mark.parametrize("model", BUILT_IN)
def test_a_traced_step_is_an_eager_one_bit_for_bit(
    model: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a service that was started again, and is not tracing yet, would learn other bits."""
    hidden = (16,) if model == "mlp" else ()
    spec = Spec(model, 200, 5, hidden, optimizer, True, 0, experts=6)
    rates = replace(HYPERPARAMETERS, shadow=("adagrad",))
    traced, eager = State(spec, rates, CPU), State(spec, rates, CPU)
    rng = np.random.default_rng(0)
    for _ in range(6):
        features = rng.normal(size=(100, 200)).astype(np.float32)
        batch = Batch(features, features[:, :5].argmax(axis=1))
        step(traced, batch)
        with monkeypatch.context() as patch:
            patch.setattr(Traced, "__call__", lambda self, *args: self.function(*args))
            step(eager, batch)
        assert same_tensors(traced.tensors(), eager.tensors())


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["funnel", "pool"])
@pytest.mark.parametrize("model", MODELS)
def test_the_gpu_learns_what_the_cpu_learns(model: str, optimizer: str) -> None:
    spec = a_spec(model, optimizer)
    here, there = (
        State(spec, HYPERPARAMETERS, CPU),
        State(spec, HYPERPARAMETERS, torch.device("cuda")),
    )
    for k in range(10):
        step(here, a_batch(k))
        step(there, a_batch(k))
    assert all(t.device.type == "cuda" for t in there.tensors().values())
    if model == "logistic":
        for name, expected in here.tensors().items():
            if ".log_gain" not in name and "ema" not in name:
                mine = there.tensors()[name].cpu()
                torch.testing.assert_close(mine, expected, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["funnel", "pool"])
def test_no_step_waits_for_the_gpu(optimizer: str) -> None:
    state = State(a_spec(optimizer=optimizer), HYPERPARAMETERS, torch.device("cuda"))
    for k in range(3):  # the second is captured, which waits
        step(state, a_batch(k))
    with waiting_is_an_error():
        for k in range(3, 6):
            step(state, a_batch(k))


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["funnel", "pool"])
def test_a_captured_step_is_an_eager_one_bit_for_bit(optimizer: str) -> None:
    """With a shadow, batches of two sizes, one not finite, a state loaded between, and a shift."""
    rates = replace(HYPERPARAMETERS, shadow=("adagrad",))
    eager, captured = (
        State(a_spec(optimizer=optimizer), rates, torch.device("cuda")) for _ in range(2)
    )
    fold = Fold(eager)
    fold._learn = partial(fold.learn, fold._whole)
    for k in range(40):
        batch = a_batch(k, n=11 if k == 7 else 20, shift=k // 30)
        if k == 9:
            batch.features[3, 1] = np.nan
        if k == 12:
            saved = {name: tensor.clone() for name, tensor in captured.tensors().items()}
            captured.load(saved, captured.version, captured.examples)
        mine, theirs = step(captured, batch), fold.step(batch)
        for field, value in vars(theirs).items():
            torch.testing.assert_close(vars(mine)[field], value, rtol=0, atol=0, equal_nan=True)
    assert same_tensors(captured.tensors(), eager.tensors())
    assert optimizer != "pool" or has_renewed(captured)
    for name, found in eager.served.pool.telemetry()["tensors"].items():
        assert torch.equal(
            captured.served.pool.telemetry()["tensors"][name]["alignment"], found["alignment"]
        )


def test_reports_of_the_host_keep_no_tensors() -> None:
    """Thousands of them, scattered among the large tensors of each step, cost gigabytes."""
    report = step(a_state(), a_batch(0))
    assert [type(v) for v in vars(report).values()] == [int, float, float, bool, float, float]


def test_a_report_has_no_loss_below_zero() -> None:
    spec = replace(a_spec("logistic"), optimizer="pool", experts=MAX_EXPERTS)
    state = State(spec, HYPERPARAMETERS, CPU)
    fold = Fold(state)
    fold.step(a_batch(0))
    pool = state.served.pool
    for parameter in pool.parameters.values():
        parameter.zero_()
    list(pool.parameters.values())[-1][:, 0] = 100.0  # each expert is sure of class 0
    generator = torch.Generator().manual_seed(0)
    right, least = a_batch(1), 0.0
    right = Batch(right.features, np.zeros_like(right.labels))
    for _ in range(50):
        pool.mixing.log_weights.copy_(
            torch.randn(len(pool.experts), generator=generator).log_softmax(dim=0)
        )
        with torch.no_grad():
            scored = state.served.score(torch.zeros(len(right), 6), torch.from_numpy(right.labels))
        least = min(least, float(scored.scored.losses.mean()))
        assert fold.step(right).loss >= 0.0
        assert state.served.scores.read().rolling_loss >= 0.0
    assert least < 0.0, "no weights were rounded up"


@pytest.mark.parametrize("optimizer", ["pool", "adam"])
def test_cuts_of_version_2_are_replayed_where_inputs_are_not_standardized(optimizer: str) -> None:
    standardized, plain = (
        Fold(State(a_spec(optimizer=optimizer, standardize=standardize), HYPERPARAMETERS, CPU))
        for standardize in (True, False)
    )
    versions = range(FOLD_VERSION + 2)
    assert [v for v in versions if plain.can_replay(v) and v > 1] == [2, 3, 4, FOLD_VERSION]
    assert [v for v in versions if standardized.can_replay(v)] == [3, 4, FOLD_VERSION]
