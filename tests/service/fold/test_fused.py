"""The compiled step of linear models beside that of operators, which is its oracle."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from funnel.compiled import plainly
from funnel.pool.fused.linear import KERNELS, Fused
from service.fold.fused.rehearsal import rehearse
from service.fold.spec import Hyperparameters, Spec
from service.fold.standardizer import Standardizer
from service.fold.state import State
from service.fold.step import Fold
from service.settings import load_settings
from streams.batch import Batch
from streams.sources.catalog import get
from tests.support.states import CPU, HYPERPARAMETERS, same_tensors

pytest.importorskip("numba")
FEATURES, CLASSES = 37, 5
POOL = Spec(
    "logistic", FEATURES, CLASSES, (), "pool", True, 0, 6, no_change=True, is_fused=True
)  # fmt: skip
SINGLE = replace(POOL, optimizer="funnel", experts=0)
SPECS = [
    POOL,
    SINGLE,
    replace(POOL, experts=3),
    replace(POOL, experts=1),
    replace(POOL, no_change=False),
]


def a_state(spec: Spec = POOL, hyperparameters: Hyperparameters = HYPERPARAMETERS) -> State:
    return State(spec, hyperparameters, CPU)


def stream(n: int, count: int, weighted: bool = False, seed: int = 0) -> Iterator[Batch]:
    """Yield batches of n examples; labels depend on inputs, and otherwise after half of them."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(2, FEATURES, CLASSES))
    unit = 10.0 ** generator.uniform(-3, 3, FEATURES)
    for k in range(count):
        features = generator.normal(size=(n, FEATURES)) + 0.5
        labels = (features @ truth[2 * k // count]).argmax(axis=1)
        weights = generator.uniform(0, 2, n).astype(np.float32) if weighted else None
        yield Batch((features * unit).astype(np.float32), labels, weights)


def copied(source: State, target: State) -> None:
    """Let one state be as another is."""
    held = {name: tensor.clone() for name, tensor in source.tensors().items()}
    target.load(held, source.version, source.examples)


def farthest(mine: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    """Return how far the numbers of two states are apart, as a share of the largest."""

    def apart(name: str) -> float:
        a, b = mine[name].double(), other[name].double()
        is_same = (a == b) | (a.isnan() & b.isnan())
        distance = torch.where(is_same, 0.0, (a - b).abs()).max()
        size = torch.where(a.isfinite(), a.abs(), 0.0).max().clamp(min=1.0)
        return float(distance / size)

    return max((apart(name), name) for name in mine)


@pytest.mark.parametrize("spec", SPECS, ids=["pool", "single", "three", "one", "no-rival"])
@pytest.mark.parametrize("n", [1, 7, 150])
def test_a_step_agrees_with_that_of_operators(spec: Spec, n: int) -> None:
    mine, oracle = a_state(spec), a_state(replace(spec, is_fused=False))
    fused, plain = Fold(mine), Fold(oracle)
    for batch in stream(60, 1):  # no two classes are alike from here on
        plain.step(batch)
    for k, batch in enumerate(stream(n, 4, seed=1)):
        weights = np.linspace(0, 2, n, dtype=np.float32) if k % 2 else None
        copied(oracle, mine)
        one, other = (fold.step(replace(batch, weights=weights)) for fold in (fused, plain))
        assert_close(mine.tensors(), oracle.tensors())
        assert one.loss == pytest.approx(other.loss, rel=1e-5, abs=1e-6)
        assert one.accuracy == other.accuracy


def assert_close(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Assert that numbers agree to 1e-5. A gain goes by the sign of its gradient, which rounding
    alone decides where the gradient is no more than that."""
    gains = [name for name in mine if name.endswith("log_gain")]
    apart = sum(int(((mine[k] - other[k]).abs() > 1e-5).sum()) for k in gains)
    assert apart <= 2
    rest = mine.keys() - set(gains)
    distance, name = farthest({k: mine[k] for k in rest}, other)
    assert distance < 1e-5, name


def test_a_first_step_agrees_with_that_of_operators() -> None:
    mine, oracle = a_state(), a_state(replace(POOL, is_fused=False))
    batch = next(stream(100, 1))
    assert Fold(mine).step(batch).loss == pytest.approx(Fold(oracle).step(batch).loss)
    one, other = (state.served.pool.tensors() | state.shared() for state in (mine, oracle))
    assert_close(one, other)


def test_accuracy_over_a_stream_is_that_of_operators_to_two_hundredths_of_a_point() -> None:
    found = []
    for is_fused in (True, False):
        spec = replace(POOL, features=784, classes=10, is_fused=is_fused)
        state = a_state(spec)
        fold = Fold(state)
        for batch in get("abrupt", 30_000).batches(1000):
            fold.step(batch)
        found.append(state.served.scores.read().accuracy)
    assert abs(found[0] - found[1]) <= 2e-4
    assert found[0] > 0.5


def learned(
    spec: Spec, count: int = 30, hyperparameters: Hyperparameters = HYPERPARAMETERS
) -> State:
    state = a_state(spec, hyperparameters)
    fold = Fold(state)
    for batch in stream(50, count, weighted=True):
        fold.step(batch)
    return state


def digest(state: State) -> str:
    held = hashlib.sha256()
    for _, tensor in sorted(state.tensors().items()):
        held.update(tensor.numpy().tobytes())
    return held.hexdigest()


def test_bits_repeat_within_and_between_processes() -> None:
    mine = digest(learned(POOL))
    assert digest(learned(POOL)) == mine
    code = (
        "import torch; torch.set_num_threads(1); import tests.service.fold.test_fused as t;"
        "print(t.digest(t.learned(t.POOL)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == mine


@pytest.mark.parametrize("spec", [POOL, SINGLE], ids=["pool", "single"])
def test_a_saved_state_goes_on_bit_for_bit(spec: Spec) -> None:
    first = a_state(spec)
    fold, heir = Fold(first), None
    for k, batch in enumerate(stream(50, 30)):
        if k == 13:
            heir = a_state(spec)
            copied(first, heir)
            again = Fold(heir)
        fold.step(batch)
        if heir is not None:
            again.step(batch)
    assert heir is not None
    assert same_tensors(first.tensors(), heir.tensors())


def test_a_batch_that_is_not_finite_changes_nothing_but_a_count() -> None:
    state = learned(POOL, 5)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    batch = next(stream(50, 1))
    features = batch.features.copy()
    features[3, 2] = np.nan
    assert not Fold(state).step(Batch(features, batch.labels)).kept
    after = state.tensors()
    changed = [k for k in before if not torch.equal(before[k].nan_to_num(), after[k].nan_to_num())]
    assert changed == ["nonfinite"]
    assert int(after["nonfinite"]) == 1


def test_what_is_quarantined_teaches_nothing() -> None:
    guarded = replace(HYPERPARAMETERS, loss_guard=3.0)
    mine, oracle = (a_state(replace(POOL, is_fused=f), guarded) for f in (True, False))
    reports = []
    for state in (mine, oracle):
        fold = Fold(state)
        reports.append([fold.step(batch).kept for batch in stream(50, 60)])
    assert reports[0] == reports[1]
    assert not all(reports[0])


def test_an_expert_is_renewed_as_by_operators() -> None:
    mine, oracle = a_state(), a_state(replace(POOL, is_fused=False))
    fused, plain = Fold(mine), Fold(oracle)
    renewed = 0
    for batch in stream(100, 24):
        copied(oracle, mine)
        fused.step(batch)
        plain.step(batch)
        own, other = mine.served.pool, oracle.served.pool
        assert_close(own.tensors(), other.tensors())
        assert torch.equal(own.renewal.excess < 0, other.renewal.excess < 0)
        renewed += int((own.renewal.excess < 0).sum())
    assert renewed > 2


def test_shadows_learn_by_operators_and_see_the_same_inputs() -> None:
    both = replace(HYPERPARAMETERS, shadow=("adagrad", "pool"))
    mine, oracle = (learned(replace(POOL, is_fused=f), 6, both) for f in (True, False))
    assert mine.served.pool.fused is not None
    assert all(shadow.pool.fused is None for shadow in mine.shadows.values())
    shadows = ("shadow.adagrad.model", "shadow.pool.model")
    names = [name for name in mine.tensors() if name.startswith(shadows)]
    one, other = ({k: s.tensors()[k] for k in names} for s in (mine, oracle))
    assert farthest(one, other)[0] < 1e-4


@pytest.mark.parametrize("size", [1, 3, 8, 9, 10, 40])
@pytest.mark.parametrize("jumps", [False, True])
def test_statistics_of_inputs_agree_with_those_of_operators(size: int, jumps: bool) -> None:
    mine, oracle = Standardizer(FEATURES, CPU, fuses=True), Standardizer(FEATURES, CPU)
    keep = torch.tensor(True)
    for k, batch in enumerate(stream(size, 40)):
        inputs = torch.from_numpy(batch.features) * (100.0 if jumps and k > 20 else 1.0)
        if k == 0:
            oracle.start(inputs)
        for name, tensor in mine.tensors().items():
            tensor.copy_(oracle.tensors()[name])
        assert torch.equal(mine.standardized(inputs), oracle.standardized(inputs))
        mine.update(inputs, keep)
        oracle.update(inputs, keep)
        one, other = mine.statistics, oracle.statistics
        unit = other[1].maximum(other[3].abs())
        assert ((one[0] - other[0]).abs() <= 1e-4 * unit).all()
        assert torch.allclose(one[1:4], other[1:4], rtol=1e-3)
        assert torch.allclose(one[4:], other[4:], atol=1e-2)
        assert torch.equal(mine.recent, oracle.recent)


def test_operators_take_all_batches_where_there_are_no_loops() -> None:
    plain = replace(POOL, is_fused=False)
    with plainly():
        mine = learned(POOL, 5)
    assert same_tensors(mine.tensors(), learned(plain, 5).tensors())


def test_models_that_do_not_fit_learn_by_operators() -> None:
    for spec in (
        replace(POOL, optimizer="adagrad", experts=0),
        replace(POOL, model="mlp", hidden=(4,)),
        replace(POOL, task="binary", classes=2),
    ):
        assert a_state(spec).served.pool.fused is None


@pytest.mark.parametrize(
    ("options", "is_fused"),
    [
        ({"model": "logistic"}, True),
        ({"model": "auto"}, True),
        ({"model": "logistic", "optimizer": "funnel"}, True),
        ({"model": "logistic", "optimizer": "adagrad"}, False),
        ({"model": "logistic", "task": "binary", "classes": 2}, False),
        ({"model": "logistic", "task": "regression"}, False),
        ({"model": "mlp"}, False),
    ],
)
def test_new_models_that_fit_learn_by_compiled_steps(
    options: dict[str, object], is_fused: bool
) -> None:
    assert load_settings({"features": 6, "classes": 3, **options}).spec.is_fused is is_fused


def test_a_rehearsal_chooses_the_loops() -> None:
    assert rehearse() == "compiled loops"
    assert isinstance(a_state().served.pool.fused, Fused)
    assert KERNELS in sys.modules
