"""Baselines that learn beside the served model."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from service.fold.spec import Shadow, Spec
from service.fold.state import State
from service.fold.step import WORST_LOSS
from service.log.position import ORIGIN, Position, Progress
from service.settings import SettingsError, load_settings
from service.trainer.checkpoint import Checkpoint
from tests.support.states import CPU, HYPERPARAMETERS, a_batch, a_spec, same_tensors, step

PROGRESS = Progress("uuid", 0, 0, Position(ORIGIN), 0, 0, 0, 0)
RESTLESS = "tests.golden.restless:Restless"
SHADOWED = replace(HYPERPARAMETERS, shadow=("adagrad:0.1", "adam", "funnel"))


@pytest.mark.parametrize("model", ["logistic", "mlp", RESTLESS])
def test_shadows_change_nothing_of_what_is_served(model: str) -> None:
    alone = State(a_spec(model), HYPERPARAMETERS, CPU)
    shadowed = State(a_spec(model), SHADOWED, CPU)
    for k in range(8):
        assert step(alone, a_batch(k)) == step(shadowed, a_batch(k))
    served = {k: v for k, v in shadowed.tensors().items() if not k.startswith("shadow.")}
    assert same_tensors(served, alone.tensors())


@pytest.mark.parametrize("model", ["logistic", "mlp", RESTLESS])
def test_a_shadow_learns_what_it_would_learn_if_it_were_served(model: str) -> None:
    rates = replace(HYPERPARAMETERS, lr=0.1)
    served = State(a_spec(model, "adagrad"), rates, CPU)
    shadowed = State(a_spec(model), SHADOWED, CPU)
    for k in range(8):
        step(served, a_batch(k))
        step(shadowed, a_batch(k))
    assert same_tensors(shadowed.shadows["adagrad:0.1"].tensors(), served.served.tensors())


def test_a_resumed_shadow_goes_on_bit_for_bit() -> None:
    whole, resumed = (State(a_spec(), SHADOWED, CPU) for _ in range(2))
    for k in range(3):
        step(whole, a_batch(k))
    saved = Checkpoint.of(whole, PROGRESS)
    resumed.load(saved.tensors, saved.version, saved.examples)
    for k in range(3, 8):
        step(whole, a_batch(k))
        step(resumed, a_batch(k))
    assert Checkpoint.of(whole, PROGRESS).sha256() == Checkpoint.of(resumed, PROGRESS).sha256()


def test_a_shadow_that_diverges_is_scored_as_wrong_and_harms_nobody() -> None:
    alone, shadowed = State(a_spec(), HYPERPARAMETERS, CPU), State(a_spec(), SHADOWED, CPU)
    with torch.no_grad():
        shadowed.shadows["adam"].pool.parameters["weight"].fill_(torch.nan)
    for k in range(4):
        step(alone, a_batch(k))
        step(shadowed, a_batch(k))
    served = {k: v for k, v in shadowed.tensors().items() if not k.startswith("shadow.")}
    assert same_tensors(served, alone.tensors())
    scores = shadowed.shadows["adam"].scores.read()
    assert (scores.scored, scores.correct) == (80, 0)
    assert scores.loss == pytest.approx(WORST_LOSS)
    assert int(shadowed.shadows["adam"].nonfinite) == 4


def test_a_batch_that_is_left_out_is_left_out_for_all() -> None:
    state = State(a_spec(), SHADOWED, CPU)
    for k in range(3):
        step(state, a_batch(k))
    before = {k: v.detach().clone() for k, v in state.tensors().items()}
    batch = a_batch(3)
    batch.features[0, 0] = np.inf
    with torch.no_grad():
        state.served.pool.parameters["weight"][0, 0, 0] = torch.inf
        before["model.weight"][0, 0, 0] = torch.inf
    step(state, batch)
    after = state.tensors()
    changed = {k for k in before if not same_tensors({k: before[k]}, {k: after[k]})}
    assert {k.rpartition(".")[2] for k in changed} <= {"nonfinite"}


def test_baselines_come_and_go_in_a_running_model() -> None:
    state = State(a_spec(), HYPERPARAMETERS, CPU)
    step(state, a_batch(0))
    state.set_hyperparameters(replace(HYPERPARAMETERS, shadow=("adam", "sgd")))
    step(state, a_batch(1))
    kept = state.shadows["adam"]
    state.set_hyperparameters(replace(HYPERPARAMETERS, shadow=("adam",)))
    step(state, a_batch(2))
    assert state.shadows == {"adam": kept}
    assert kept.scores.read().scored == 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adagrad,nonsense", "unknown optimizer 'nonsense'"),
        ("adagrad:fast", "must be a number above 0"),
        ("adam:-1", "must be a number above 0"),
        ("adam,adam", "named twice"),
    ],
)
def test_wrong_baselines_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings({"shadow": text})


def test_a_baseline_takes_the_learning_rate_that_it_is_given() -> None:
    assert load_settings({"shadow": "adagrad:0.5, adam"}).shadow == ("adagrad:0.5", "adam")
    assert Shadow.parse("adagrad:0.5").hyperparameters(HYPERPARAMETERS).lr == 0.5
    assert Shadow.parse("funnel").hyperparameters(HYPERPARAMETERS).lr == HYPERPARAMETERS.lr


def test_a_pool_may_come_and_go_beside_another_optimizer() -> None:
    alone = load_settings({"model": "logistic", "optimizer": "funnel"})
    beside = load_settings({"model": "logistic", "optimizer": "funnel", "shadow": "pool"})
    assert beside.spec == alone.spec, "a checkpoint of one is that of the other"
    assert Spec.of(asdict(alone.spec) | {"experts": 6}) == alone.spec, "as it was written before"
    state = State(beside.spec, beside.hyperparameters, CPU)
    served = State(load_settings({"model": "logistic"}).spec, HYPERPARAMETERS, CPU)
    assert state.shadows["pool"].tensors().keys() == served.served.tensors().keys()
