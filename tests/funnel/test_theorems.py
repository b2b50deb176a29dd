"""Consequences of the paper's equations, checked on random inputs."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, Inner, RMSprop


def run(grads: list[Tensor], w0: Tensor, **settings: object) -> tuple[Tensor, dict[str, Tensor]]:
    w = torch.nn.Parameter(w0.clone())
    opt = Funnel([w], **settings)
    for g in grads:
        w.grad = g.to(w.dtype)
        opt.step()
    return w.detach(), opt.state[w]


@pytest.mark.parametrize(
    "inner", [SGD(), Adagrad(), AdagradEMA(), RMSprop(), Adam()], ids=lambda i: type(i).__name__
)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("skip_nonfinite", [True, False])
def test_without_meta_learning_it_is_the_inner_optimizer_under_heavy_ball_bit_for_bit(
    inner: Inner, momentum: float, nesterov: bool, skip_nonfinite: bool
) -> None:
    grads = [torch.randn(5, 3) for _ in range(50)]
    lr = 0.0317
    w, _ = run(
        grads,
        torch.ones(5, 3),
        inner=inner,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        gain_lr=0.0,
        scale_lr=0.0,
        skip_nonfinite=skip_nonfinite,
    )
    expected, velocity = torch.ones(5, 3), torch.zeros(5, 3)
    state = {k: [v] for k, v in inner.init_state(expected, torch.float32).items()}
    for t, g in enumerate(grads):
        [precond] = inner.precondition([g], state, [torch.tensor(t)], None)
        velocity = momentum * velocity + lr * precond
        expected = expected - (momentum * velocity + lr * precond if nesterov else velocity)
    assert torch.equal(w, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_meta_learning_it_is_torch_sgd_bit_for_bit(momentum: float) -> None:
    grads = [torch.randn(5, 3) for _ in range(50)]
    lr = 2.0**-5  # a power of two commutes with every rounding
    w, _ = run(
        grads, torch.ones(5, 3), inner=SGD(), lr=lr, momentum=momentum, gain_lr=0.0, scale_lr=0.0
    )
    theirs = torch.nn.Parameter(torch.ones(5, 3))
    opt = torch.optim.SGD([theirs], lr=lr, momentum=momentum)
    for g in grads:
        theirs.grad = g
        opt.step()
    assert torch.equal(w, theirs.detach())


def test_without_meta_learning_it_is_torch_adagrad_bit_for_bit() -> None:
    grads = [torch.randn(5, 3) for _ in range(50)]
    w, _ = run(grads, torch.ones(5, 3), inner=Adagrad(), lr=2.0**-5, gain_lr=0.0, scale_lr=0.0)
    theirs = torch.nn.Parameter(torch.ones(5, 3))
    opt = torch.optim.Adagrad([theirs], lr=2.0**-5)
    for g in grads:
        theirs.grad = g
        opt.step()
    assert torch.equal(w, theirs.detach())


@pytest.mark.parametrize("normalize_scale", [True, False])
def test_a_gradient_aligned_with_the_last_step_raises_the_scale_an_opposed_one_lowers_it(
    normalize_scale: bool,
) -> None:
    g = torch.randn(6)
    settings = {"inner": SGD(), "normalize_scale": normalize_scale, "scale_lr": 0.1}
    _, aligned = run([g, 2 * g], torch.zeros(6), **settings)
    _, opposed = run([g, -2 * g], torch.zeros(6), **settings)
    assert aligned["log_scale"] > 0 > opposed["log_scale"]
    if normalize_scale:
        torch.testing.assert_close(aligned["log_scale"], torch.tensor(0.1))


@pytest.mark.parametrize("normalize_gain", [True, False])
def test_gains_rise_where_gradients_agree_and_fall_where_they_oppose(normalize_gain: bool) -> None:
    first, second = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, -0.5, 0.0])
    _, state = run([first, second], torch.zeros(3), inner=SGD(), normalize_gain=normalize_gain)
    assert state["log_gain"].sign().tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("normalize_gain", [True, False])
@pytest.mark.parametrize("normalize_scale", [True, False])
def test_the_first_step_leaves_gain_and_scale_at_exactly_one(
    normalize_gain: bool, normalize_scale: bool
) -> None:
    for g in (torch.randn(4), torch.zeros(4), torch.full((4,), 1e-30)):
        w, state = run(
            [g], torch.ones(4), normalize_gain=normalize_gain, normalize_scale=normalize_scale
        )
        assert torch.equal(state["log_gain"].exp(), torch.ones(4))
        assert state["log_scale"].exp() == 1.0
        assert w.isfinite().all()


def test_norms_that_underflow_or_overflow_leave_the_scale_alone() -> None:
    tiny, huge = torch.full((4,), 1e-30), torch.full((4,), 1e20)
    for g in (tiny, huge):
        _, state = run([torch.ones(4), g, g], torch.ones(4), inner=SGD())
        assert state["log_scale"] == 0.0
        assert state["log_gain"].isfinite().all()


def test_an_inner_product_that_overflows_leaves_the_unnormalized_scale_alone() -> None:
    g, settings = torch.full((4,), 1e18), {"lr": 1e3, "momentum": 0.0, "normalize_scale": False}
    w, state = run([g, g], torch.zeros(4), inner=SGD(), **settings)
    assert (w < -1.5e21).all(), "both steps count"
    assert state["log_scale"] == 0.0


def test_a_norm_that_partly_underflows_moves_the_scale_by_no_more_than_its_rate() -> None:
    g = torch.full((100_000,), 1e-23)  # each square underflows in fp32 ...
    g[0] = 1e-21  # ... except this one, so that the computed ‖g‖ is a thirtieth of the true one
    _, state = run([torch.ones(100_000), g], torch.ones(100_000), inner=SGD(), scale_lr=0.1)
    assert 0.0 < state["log_scale"] <= 0.1 + 1e-6


@pytest.mark.parametrize("rate", [1e-3, 1e-4])
def test_to_first_order_it_is_the_multiplicative_hypergradient_update(rate: float) -> None:
    """Baydin et al. 2018, eq. (8): α ← α (1 + β ⟨g_t, g_{t-1}⟩/(‖·‖‖·‖)); the error is O(γ²)."""
    grads = [torch.randn(8, dtype=torch.float64) + 1.0 for _ in range(3)]
    _, state = run(grads, torch.zeros(8).double(), inner=SGD(), gain_lr=0.0, scale_lr=rate, lr=0.1)
    cosines = [torch.dot(a, b) / (a.norm() * b.norm()) for a, b in pairwise(grads)]
    hypergradient = math.prod(1 + rate * float(c) for c in cosines)
    assert abs(float(state["log_scale"].exp()) - hypergradient) < 2 * rate**2


@given(exponent=st.integers(-20, 20), seed=st.integers(0, 2**16))
def test_normalized_updates_do_not_depend_on_the_size_of_the_gradient(
    exponent: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(4, generator=generator) for _ in range(5)]
    _, one = run(grads, torch.zeros(4), inner=SGD(), momentum=0.5)
    _, other = run([g * 2.0**exponent for g in grads], torch.zeros(4), inner=SGD(), momentum=0.5)
    assert torch.equal(one["log_gain"], other["log_gain"])
    torch.testing.assert_close(one["log_scale"], other["log_scale"], rtol=1e-5, atol=1e-8)


@given(
    seed=st.integers(0, 2**16),
    magnitude=st.floats(1e-12, 1e12),
    normalize=st.booleans(),
    gain_lr=st.floats(0, 10),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_gain_and_scale_stay_positive_and_within_bounds(
    seed: int, magnitude: float, normalize: bool, gain_lr: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(4, generator=generator) * magnitude for _ in range(6)]
    w, state = run(
        grads,
        torch.zeros(4, dtype=dtype),
        gain_lr=gain_lr,
        scale_lr=gain_lr,
        normalize_gain=normalize,
        normalize_scale=normalize,
    )
    assert w.isfinite().all()
    assert (state["log_gain"].abs() <= math.log(1e3) + 1e-6).all()
    assert state["log_scale"].abs() <= math.log(1e2) + 1e-6


def test_a_bf16_gain_moves_by_a_thousandth_where_bf16_itself_could_not() -> None:
    grads = [torch.ones(4)] * 101
    _, state = run(grads, torch.zeros(4, dtype=torch.bfloat16), gain_lr=1e-3)
    torch.testing.assert_close(state["log_gain"], torch.full((4,), 0.1))


def test_a_gain_without_a_floor_returns_from_zero() -> None:
    down = [torch.ones(1) * (-1.0) ** t for t in range(40)]
    up = [torch.ones(1)] * 60
    settings = {"inner": SGD(), "gain_lr": 8.0, "gain_bounds": (0.0, 1e3), "beta": 0.0, "lr": 1e-6}
    _, deep = run(down, torch.zeros(1), **settings)
    assert deep["log_gain"].exp() == 0.0  # below the smallest fp32 number
    _, risen = run(down + up, torch.zeros(1), **settings)
    assert risen["log_gain"] > 0


def test_weight_decay_shrinks_the_weights_and_touches_neither_gain_nor_scale() -> None:
    grads = [torch.randn(4) for _ in range(10)]
    plain, state = run(grads, torch.ones(4), lr=0.1)
    decayed, with_decay = run(grads, torch.ones(4), lr=0.1, weight_decay=0.5)
    assert not torch.equal(plain, decayed)
    for key in ("log_gain", "log_scale", "velocity", "precond_ema"):
        assert torch.equal(state[key], with_decay[key])
    still, _ = run([torch.zeros(4)], torch.ones(4), lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(still, torch.full((4,), 0.95))
