"""A class that is closed gets no probability, no gradient and no state until it is opened."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from funnel import Pool
from funnel.pool.classes import CLOSED, close_
from funnel.pool.expert import for_width
from funnel.pool.growth import grown
from service.fold import networks
from tests.support.pools import EXPERTS, FEATURES, KEEP, learn, made

OPEN, ALL, N = 3, 8, 30
HIDDEN: list[tuple[int, ...]] = [(), (6,)]
POOLS = {"default": for_width(FEATURES), "every inner optimizer": EXPERTS}


def model(
    hidden: tuple[int, ...], classes: int, opened: int, features: int = FEATURES
) -> nn.Module:
    module = networks.build("mlp" if hidden else "logistic", features, classes, hidden, seed=2)
    close_(module, opened)
    return module


def batch(seed: int, classes: int = OPEN, shift: int = 0) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(N, FEATURES, generator=torch.Generator().manual_seed(seed))
    return inputs, (inputs[:, :classes].argmax(dim=1) + shift) % classes


def declared(hidden: tuple[int, ...], name: str = "default") -> Pool:
    return Pool(model(hidden, ALL, OPEN), FEATURES, POOLS[name])


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_a_closed_class_gets_no_probability_gradient_or_state(
    hidden: tuple[int, ...], name: str
) -> None:
    pool = declared(hidden, name)
    before = {key: tensor.clone() for key, tensor in pool.tensors().items()}
    last = list(pool.parameters)[-2:]
    for seed in range(40):
        inputs, labels = batch(seed)
        scored = pool.score(inputs, labels)
        assert (scored.answers[:, OPEN:] == 0.0).all()
        assert all((gradient[:, OPEN:] == 0.0).all() for gradient in scored.gradients[-2:])
        pool.update(inputs, labels, pool.decide(scored, KEEP))
    assert (pool.predict(batch(99)[0])[:, OPEN:] == 0.0).all()
    bias = pool.parameters[last[1]]
    assert (bias[:, OPEN:] == CLOSED).all()
    assert not torch.equal(bias[:, :OPEN], before[f"model.{last[1]}"][:, :OPEN])
    for key, tensor in pool.tensors().items():
        of_last = any(f".{name}." in f"{key}." for name in last)
        if of_last and tensor.dim() > 1 and tensor.shape[1] == ALL:
            assert torch.equal(tensor[:, OPEN:], before[key][:, OPEN:]), key


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_what_is_open_learns_as_if_there_were_nothing_else(hidden: tuple[int, ...]) -> None:
    wide, narrow = declared(hidden), Pool(model(hidden, OPEN, OPEN), FEATURES)
    for seed in range(3):
        found = learn(wide, *batch(seed))
        torch.testing.assert_close(found, learn(narrow, *batch(seed)), rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(HIDDEN),
    st.integers(0, 6),
    st.integers(0, 6),
    st.floats(-8.0, 0.0, width=32),
)
def test_declared_and_grown_classes_are_the_same_bit_for_bit(
    hidden: tuple[int, ...], before: int, after: int, bias: float
) -> None:
    first = declared(hidden)
    second = grown(declared(hidden), model(hidden, ALL, OPEN), FEATURES)
    third = declared(hidden)
    for seed in range(before):
        for pool in (first, second, third):
            learn(pool, *batch(seed))
    third = grown(third, model(hidden, ALL, OPEN), FEATURES)
    for pool in (first, second, third):
        pool.open_classes(OPEN, OPEN + 2, bias)
    for seed in range(after):
        losses = [learn(pool, *batch(50 + seed, OPEN + 2)) for pool in (first, second, third)]
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(losses[0], losses[2])
    for key, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[key]), key
        assert torch.equal(tensor, third.tensors()[key]), key


def test_an_opened_class_begins_at_its_prior() -> None:
    pool = declared(())
    pool.open_classes(OPEN, OPEN + 1, -2.0)
    expected = torch.tensor([0.0] * OPEN + [-2.0]).softmax(dim=0)
    found = pool.predict(torch.zeros(1, FEATURES))[0]
    torch.testing.assert_close(found[: OPEN + 1], expected)
    assert (found[OPEN + 1 :] == 0.0).all()


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_a_renewed_expert_keeps_closed_classes_closed_and_forgets_the_prior(
    hidden: tuple[int, ...], on_host: bool
) -> None:
    memory = replace(EXPERTS[0], lr=0.3)
    pool = Pool(model(hidden, ALL, OPEN), FEATURES, [memory, replace(memory, renews=True)])
    pool.execution = replace(pool.execution, on_host=on_host)
    pool.open_classes(OPEN, OPEN + 1, -3.0)
    for seed in range(60):
        learn(pool, *batch(seed))
    learn(pool, *batch(100, shift=1))
    assert pool.renewal.excess[1] == -1.0
    bias = list(pool.parameters.values())[-1]
    assert torch.equal(bias[1], torch.tensor([0.0] * (OPEN + 1) + [CLOSED] * (ALL - OPEN - 1)))


def test_an_expert_that_restarts_keeps_closed_classes_closed() -> None:
    pool = declared((), "every inner optimizer")
    for seed in range(5):
        learn(pool, *batch(seed))
    pool.parameters["bias"][[0, 4]] = torch.nan
    learn(pool, *batch(9))
    assert (pool.parameters["bias"][:, OPEN:] == CLOSED).all()


def test_knowing_nothing_is_measured_among_the_open_classes() -> None:
    pool = declared(())
    assert pool.classes is not None
    assert pool.classes.log_count().item() == pytest.approx(math.log(OPEN))
    pool.open_classes(OPEN, ALL, -1.0)
    assert pool.classes.log_count().item() == pytest.approx(math.log(ALL))


def test_traces_follow_what_opens() -> None:
    traced, eager = declared(()), declared(())
    for seed in range(40):
        if seed == 20:
            for pool in (traced, eager):
                pool.open_classes(OPEN, OPEN + 1, -1.0)
        eager._configure(eager.experts)  # without the traces
        for pool in (traced, eager):
            learn(pool, *batch(seed, OPEN + (seed >= 20)))
    assert len(traced._take._traces) > 0  # type: ignore[attr-defined]
    for key, tensor in traced.tensors().items():
        assert torch.equal(tensor, eager.tensors()[key]), key


def test_reports_do_not_show_the_biases_of_closed_classes() -> None:
    pool = declared(())
    for seed in range(9):
        learn(pool, *batch(seed))
    for report in pool.telemetry()["tensors"].values():
        for value in report.values():
            assert value.abs().max() < 1e3  # type: ignore[attr-defined]


def test_what_cannot_open_is_refused() -> None:
    pool = declared(())
    with pytest.raises(ValueError, match="is open already"):
        pool.open_classes(OPEN - 1, OPEN + 1, 0.0)
    with pytest.raises(ValueError, match="do not lie in the 8"):
        pool.open_classes(OPEN, ALL + 1, 0.0)
    with pytest.raises(ValueError, match="cannot be closed"):
        Pool(made("tanh"), FEATURES).open_classes(0, 1, 0.0)
