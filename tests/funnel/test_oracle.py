"""Golden numbers that lingvo (Apache-2.0) published for EGDD, the early form of the method."""

import pytest
import torch

from funnel import SGD, Funnel
from funnel.reference import ReferenceFunnel

GRADIENTS = ([0.1, -0.5], [-1.0, -1.5])
SETTINGS = {"momentum": 0.9, "beta": 0.1, "gain_lr": 1e-2, "scale_lr": 1e-3}
GOLDEN = {
    False: {
        "w": [0.5810, 1.2463],
        "velocity": [-0.0909, -0.1961],
        "gain": [0.9990, 1.0075],
        "scale": 1.0007,
    },
    True: {
        "w": [0.5801, 1.2466],
        "velocity": [-0.0900, -0.1965],
        "gain": [0.9900, 1.0101],
        "scale": 1.0007,
    },
}


def close(actual: torch.Tensor, golden: object) -> None:
    torch.testing.assert_close(actual.double(), torch.tensor(golden).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalize_gain", [False, True])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_steps_give_the_published_numbers(normalize_gain: bool, compiled: bool) -> None:
    w = torch.nn.Parameter(torch.tensor([0.5, 1.0]))
    opt = Funnel([w], SGD(), lr=0.1, normalize_gain=normalize_gain, compiled=compiled, **SETTINGS)
    for g in GRADIENTS:
        w.grad = torch.tensor(g)
        opt.step()
    golden, state = GOLDEN[normalize_gain], opt.state[w]
    close(w.detach(), golden["w"])
    close(state["velocity"], golden["velocity"])
    close(state["log_gain"].exp(), golden["gain"])
    close(state["log_scale"].exp(), golden["scale"])


@pytest.mark.parametrize("normalize_gain", [False, True])
def test_the_reference_twin_gives_the_published_numbers(normalize_gain: bool) -> None:
    twin = ReferenceFunnel(
        "sgd", eta=0.1, mu=0.9, beta=0.1, gamma_p=1e-2, gamma_s=1e-3, normalize_gain=normalize_gain
    )
    w = torch.tensor([0.5, 1.0])
    for g in GRADIENTS:
        w = twin.step(w, torch.tensor(g))
    golden = GOLDEN[normalize_gain]
    close(w, golden["w"])
    close(twin.nu, golden["velocity"])
    close(twin.p, golden["gain"])
    close(twin.s, golden["scale"])
