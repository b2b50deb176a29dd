"""The fast path equals its float64 twin at every step, for every variant of the paper.

Both see the same gradients. Before each step the twin adopts the fast path's rounded weights, so
that each of the 200 steps may differ by one rounding of the parameter's dtype, not by a sum of 200.
"""

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, Inner, RMSprop
from funnel.reference import ReferenceFunnel

STEPS = 200
SHAPES = [(5, 3), (4,), (2, 2, 3)]
INNERS: dict[str, Inner] = {
    "sgd": SGD(),
    "adagrad": Adagrad(),
    "adagrad_ema": AdagradEMA(),
    "rmsprop": RMSprop(),
    "adam": Adam(),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MOMENTUM = [(0.0, False), (0.9, False), (0.9, True)]
SETTINGS = {"lr": 0.03, "beta": 0.8, "gain_lr": 0.02, "scale_lr": 0.03}


def walk(
    dtypes: Sequence[torch.dtype],
    inner: str,
    normalize_gain: bool,
    normalize_scale: bool,
    momentum: tuple[float, bool],
    compiled: bool,
    weight_decay: float = 0.01,
) -> None:
    generator = torch.Generator().manual_seed(7)
    params = [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for shape, dtype in zip(SHAPES, dtypes, strict=False)
    ]
    bounds = {"gain_bounds": (0.5, 1.6), "scale_bounds": (0.7, 1.3)}
    opt = Funnel(
        params,
        INNERS[inner],
        momentum=momentum[0],
        nesterov=momentum[1],
        normalize_gain=normalize_gain,
        normalize_scale=normalize_scale,
        weight_decay=weight_decay,
        compiled=compiled,
        **SETTINGS,
        **bounds,
    )
    twins = [
        ReferenceFunnel(
            inner,
            eta=SETTINGS["lr"],
            mu=momentum[0],
            nesterov=momentum[1],
            beta=SETTINGS["beta"],
            gamma_p=SETTINGS["gain_lr"],
            gamma_s=SETTINGS["scale_lr"],
            normalize_gain=normalize_gain,
            normalize_scale=normalize_scale,
            weight_decay=weight_decay,
            **bounds,
        )
        for _ in params
    ]
    drift = [torch.randn(p.shape, generator=generator) for p in params]
    for _ in range(STEPS):
        expected = []
        for p, d, twin in zip(params, drift, twins, strict=True):
            p.grad = (torch.randn(p.shape, generator=generator) + 0.5 * d).to(p.dtype)
            expected.append(twin.step(p.detach(), p.grad))
        opt.step()
        for p, w, twin in zip(params, expected, twins, strict=True):
            exact = p.dtype == torch.float64
            compare(opt.state[p], twin, 1e-9 if exact else 2e-4)
            rounding = 1e-12 if exact else max(torch.finfo(p.dtype).eps, 1e-6)
            close(p.detach().double(), w, rtol=rounding, atol=1e-12 if exact else 2e-6)


def compare(state: dict[str, Tensor], twin: ReferenceFunnel, rtol: float) -> None:
    tolerance = {"rtol": rtol, "atol": rtol / 10}
    close(state["log_gain"].exp().double(), twin.p, **tolerance)
    close(state["log_scale"].exp().double(), twin.s, **tolerance)
    close(state["velocity"].double(), twin.nu, **tolerance)
    close(state["precond_ema"].double(), twin.m, **tolerance)
    assert torch.equal(state["step"].double(), twin.t)


def close(actual: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    """Assert what `torch.testing.assert_close` does, which takes much longer."""
    is_alike = (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if not (is_alike and ((actual - expected).abs() <= atol + rtol * expected.abs()).all()):
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def test_what_is_not_close_is_found() -> None:
    one = torch.ones(2, dtype=torch.float64)
    close(one, one + 9e-4, rtol=0.0, atol=1e-3)
    for other in (one + 2e-3, one.float(), torch.ones((), dtype=torch.float64), one * torch.nan):
        with pytest.raises(AssertionError):
            close(other, one, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("momentum", MOMENTUM, ids=["plain", "momentum", "nesterov"])
@pytest.mark.parametrize(("gain", "scale"), list(product([True, False], repeat=2)))
@pytest.mark.parametrize("inner", INNERS)
def test_sparse_steps_equal_the_reference_which_knows_no_compaction(
    inner: str, gain: bool, scale: bool, momentum: tuple[float, bool]
) -> None:
    generator = torch.Generator().manual_seed(7)
    w = torch.nn.Parameter(torch.randn(6, 3, generator=generator, dtype=torch.float64))
    variant = {"normalize_gain": gain, "normalize_scale": scale, "weight_decay": 0.01}
    mu, nesterov = momentum
    opt = Funnel([w], INNERS[inner], momentum=mu, nesterov=nesterov, **SETTINGS, **variant)
    eta, beta, gamma_p, gamma_s = SETTINGS.values()
    twin = ReferenceFunnel(inner, eta, mu, nesterov, beta, gamma_p, gamma_s, **variant)
    for _ in range(60):
        touched = torch.rand(6, 1, generator=generator) < 0.4
        touched[torch.randint(6, (), generator=generator)] = True
        g = torch.randn(6, 3, generator=generator, dtype=torch.float64) * touched
        [rows] = touched[:, 0].nonzero(as_tuple=True)
        w.grad = torch.sparse_coo_tensor(rows[None], g[rows], w.shape, check_invariants=True)
        expected = twin.step(w.detach(), g, touched)
        opt.step()
        compare(opt.state[w], twin, 1e-9)
        close(w.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", MOMENTUM, ids=["plain", "momentum", "nesterov"])
@pytest.mark.parametrize(("gain", "scale"), list(product([True, False], repeat=2)))
@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eager_equals_the_reference_at_every_step(
    dtype: torch.dtype, inner: str, gain: bool, scale: bool, momentum: tuple[float, bool]
) -> None:
    walk([dtype] * 3, inner, gain, scale, momentum, compiled=False)


VARIANTS = list(product([True, False], repeat=2))
COMPILED = [
    (inner, *variant, MOMENTUM[(i + k) % len(MOMENTUM)])
    for i, inner in enumerate(INNERS)
    for k, variant in enumerate(VARIANTS)
]
"""Every pair of an inner optimizer, a variant and a momentum; a graph takes seconds to compile. The
eager test has all triples."""


@pytest.mark.slow
@pytest.mark.parametrize(("inner", "gain", "scale", "momentum"), COMPILED)
def test_compiled_equals_the_reference_at_every_step_in_fp32_bf16_and_fp16(
    inner: str, gain: bool, scale: bool, momentum: tuple[float, bool]
) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16]  # one graph holds all of them
    walk(dtypes, inner, gain, scale, momentum, compiled=True)
