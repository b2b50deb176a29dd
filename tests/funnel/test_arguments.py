"""Every constructor argument is checked; an error names the argument, its value and its range."""

import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, RMSprop

BAD = [
    ({"lr": -0.1}, "lr must be in [0, inf), got -0.1"),
    ({"lr": math.nan}, "lr must be in [0, inf), got nan"),
    ({"lr": "0.1"}, "lr must be a number in [0, inf), got '0.1'"),
    ({"lr": True}, "lr must be a number in [0, inf), got True"),
    ({"lr": torch.ones(2)}, "lr as a tensor must be 0-dim and floating, got shape (2,)"),
    ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
    ({"momentum": -0.5}, "momentum must be in [0, 1), got -0.5"),
    ({"beta": 1.0}, "beta must be in [0, 1), got 1.0"),
    ({"gain_lr": -1e-3}, "gain_lr must be in [0, inf), got -0.001"),
    ({"scale_lr": math.inf}, "scale_lr must be in [0, inf), got inf"),
    ({"weight_decay": -1.0}, "weight_decay must be in [0, inf), got -1.0"),
    ({"nesterov": True}, "nesterov needs momentum in (0, 1), got momentum=0.0"),
    ({"nesterov": 1}, "nesterov must be True or False, got 1"),
    ({"normalize_gain": "yes"}, "normalize_gain must be True or False, got 'yes'"),
    ({"normalize_scale": None}, "normalize_scale must be True or False, got None"),
    ({"maximize": 0}, "maximize must be True or False, got 0"),
    ({"skip_nonfinite": 1}, "skip_nonfinite must be True or False, got 1"),
    ({"compiled": "auto"}, "compiled must be True or False, got 'auto'"),
    ({"gain_bounds": (2.0, 3.0)}, "gain_bounds[0] must be in [0, 1], got 2.0"),
    ({"gain_bounds": (0.5, 0.9)}, "gain_bounds[1] must be in [1, inf), got 0.9"),
    ({"scale_bounds": (-1.0, 2.0)}, "scale_bounds[0] must be in [0, 1], got -1.0"),
    ({"scale_bounds": (0.1, math.inf)}, "scale_bounds[1] must be in [1, inf), got inf"),
    ({"scale_bounds": 3.0}, "scale_bounds must be a pair (low, high), got 3.0"),
    ({"inner": "adagrad"}, "inner must be one of funnel's inner optimizers"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=str)
def test_a_bad_argument_is_named_with_its_value_and_range(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        Funnel([nn.Parameter(torch.ones(2))], **arguments)


@pytest.mark.parametrize(("arguments", "message"), [b for b in BAD if "compiled" not in b[0]])
def test_a_bad_argument_of_a_group_is_named_and_the_group_is_not_added(
    arguments: dict[str, Any], message: str
) -> None:
    opt = Funnel([nn.Parameter(torch.ones(2))])
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], **arguments})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adagrad(eps=-1.0), "Adagrad.eps must be in [0, inf), got -1.0"),
        (lambda: Adagrad(initial_accumulator_value=-1.0), "Adagrad.initial_accumulator_value"),
        (lambda: AdagradEMA(ema_beta=1.0), "AdagradEMA.ema_beta must be in [0, 1), got 1.0"),
        (lambda: RMSprop(alpha=1.5), "RMSprop.alpha must be in [0, 1), got 1.5"),
        (lambda: RMSprop(eps=math.nan), "RMSprop.eps must be in [0, inf), got nan"),
        (lambda: RMSprop(eps=0.0), "RMSprop.eps must be above 0"),
        (lambda: Adam(eps=0.0), "Adam.eps must be above 0"),
        (lambda: Adagrad(eps=0.0), "Adagrad.eps must be above 0"),
        (lambda: Adam(beta1=-0.1), "Adam.beta1 must be in [0, 1), got -0.1"),
        (lambda: Adam(beta2=1.0), "Adam.beta2 must be in [0, 1), got 1.0"),
    ],
)
def test_a_bad_argument_of_an_inner_optimizer_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match=r"real floating parameters, got torch\.complex64"):
        Funnel([nn.Parameter(torch.ones(2, dtype=torch.complex64))])


def test_an_inner_class_means_an_instance_with_its_defaults() -> None:
    opt = Funnel([nn.Parameter(torch.ones(2))], SGD)
    assert opt.param_groups[0]["inner"] == SGD()


@pytest.mark.parametrize(
    ("inner", "error", "message"),
    [
        (torch.optim.AdamW, ValueError, "AdamW has weight_decay=0.01"),
        (partial(torch.optim.SGD, weight_decay=0.1), ValueError, "SGD has weight_decay=0.1"),
        (partial(torch.optim.Adam, maximize=True), ValueError, "Adam has maximize=True"),
        (torch.optim.ASGD, TypeError, "ASGD reads the weights"),  # averages and decays them
        (torch.optim.Adafactor, TypeError, "Adafactor reads the weights"),  # reads their size
        (torch.optim.LBFGS, TypeError, "LBFGS needs a closure"),
        (torch.optim.SparseAdam, TypeError, "SparseAdam needs sparse gradients"),
        (lambda params: len(params), TypeError, "must build a torch.optim.Optimizer, got int"),
    ],
)
def test_an_unsuitable_inner_optimizer_is_refused_by_name(
    inner: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Funnel([nn.Parameter(torch.ones(2))], inner)


def test_traced_is_deprecated_and_changes_no_bit() -> None:
    plain, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    with pytest.warns(DeprecationWarning, match="no effect: omit it.*use funnel.Pool"):
        traced = Funnel([other], traced=True)
    for opt, w in ((Funnel([plain]), plain), (traced, other)):
        for _ in range(20):
            w.grad = torch.tensor([1.0, -2.0, 0.5])
            opt.step()
    assert torch.equal(plain, other)
