"""The inner optimizers D that Funnel implements itself.

`ForeignInner` wraps any other optimizer of ``torch.optim``; a subclass of
`funnel.inner.interface.Inner` adds a new one.

    >>> g, inner = [torch.tensor([3.0, -4.0])], Adagrad()
    >>> state = {"sum": [inner.init_state(g[0], torch.float32)["sum"]]}
    >>> inner.precondition(g, state, step=[torch.tensor(0)], active=None)
    [tensor([ 1., -1.])]
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from funnel import tensorlists as lists
from funnel.checks import check_number, check_positive
from funnel.inner.foreign import ForeignInner
from funnel.inner.interface import Flags, Inner, StateLists, coordinatewise, masked

__all__ = ["SGD", "Adagrad", "AdagradEMA", "Adam", "ForeignInner", "Inner", "RMSprop"]


@dataclass(frozen=True)
class SGD(Inner):
    """g̃ = g."""

    @coordinatewise
    def precondition(
        self, grads: list[Tensor], state: StateLists, step: list[Tensor], active: Flags
    ) -> list[Tensor]:
        """Return the gradients themselves; Funnel adds the momentum."""
        return grads


@dataclass(frozen=True)
class Adagrad(Inner):
    """AdaGrad [Duchi et al. 2011]: a ← a + g²; g̃ = g / (√a + ε); a starts at the initial value.

    ε or the initial value must be above 0.
    """

    eps: float = 1e-10
    initial_accumulator_value: float = 0.0

    def __post_init__(self) -> None:
        check_number("Adagrad.eps", self.eps, low=0.0)
        check_number("Adagrad.initial_accumulator_value", self.initial_accumulator_value, low=0.0)
        if not self.initial_accumulator_value:
            check_positive("Adagrad.eps", self.eps)

    def init_state(self, param: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return ``sum``, the accumulator a, and the averages."""
        start = torch.full_like(param, self.initial_accumulator_value, dtype=dtype)
        return {"sum": start} | super().init_state(param, dtype)

    @coordinatewise
    def precondition(
        self, grads: list[Tensor], state: StateLists, step: list[Tensor], active: Flags
    ) -> list[Tensor]:
        """Add g² to the accumulator and divide by its root; a zero gradient changes nothing."""
        lists.addcmul_(state["sum"], grads, grads)
        if self.eps == 0.0:
            return lists.mul(grads, lists.rsqrt(state["sum"]))
        return lists.div(grads, lists.add_(lists.sqrt(state["sum"]), self.eps))


@dataclass(frozen=True)
class AdagradEMA(Adagrad):
    """The paper's AdaGrad-EMA (§4.2.2): e ← β e + (1-β) g / (√a + ε); g̃ = e; e starts at 0.

    There is no bias correction, so the first 1/(1-β) steps are shorter.
    """

    averages = ("ema",)
    """The average e."""
    ema_beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("AdagradEMA.ema_beta", self.ema_beta, low=0.0, below=1.0)

    @coordinatewise
    def precondition(
        self, grads: list[Tensor], state: StateLists, step: list[Tensor], active: Flags
    ) -> list[Tensor]:
        """Precondition as AdaGrad does, then average the result."""
        precond = super().precondition(grads, state, step, active)
        ema_(state["ema"], precond, self.ema_beta, active)
        return state["ema"]


@dataclass(frozen=True)
class RMSprop(Inner):
    """RMSProp [Tieleman & Hinton 2012]: v ← α v + (1-α) g²; g̃ = g / (√v + ε)."""

    averages = ("square_avg",)
    """The average v."""
    alpha: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_number("RMSprop.alpha", self.alpha, low=0.0, below=1.0)
        check_positive("RMSprop.eps", self.eps)

    @coordinatewise
    def precondition(
        self, grads: list[Tensor], state: StateLists, step: list[Tensor], active: Flags
    ) -> list[Tensor]:
        """Average g², and divide by the root of the average."""
        ema_(state["square_avg"], lists.mul(grads, grads), self.alpha, active)
        return lists.div(grads, lists.add_(lists.sqrt(state["square_avg"]), self.eps))


@dataclass(frozen=True)
class Adam(Inner):
    """Adam [Kingma & Ba 2015], bias-corrected: g̃ = m̂ / (√v̂ + ε)."""

    averages = ("exp_avg", "exp_avg_sq")
    """The averages of g and g²."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_number("Adam.beta1", self.beta1, low=0.0, below=1.0)
        check_number("Adam.beta2", self.beta2, low=0.0, below=1.0)
        check_positive("Adam.eps", self.eps)

    @coordinatewise
    def precondition(
        self, grads: list[Tensor], state: StateLists, step: list[Tensor], active: Flags
    ) -> list[Tensor]:
        """Average g and g², correct both for their start at zero, and return m̂ / (√v̂ + ε)."""
        ema_(state["exp_avg"], grads, self.beta1, active)
        ema_(state["exp_avg_sq"], lists.mul(grads, grads), self.beta2, active)
        dtype = grads[0].dtype
        mean = lists.div(state["exp_avg"], bias_correction(step, self.beta1, dtype))
        square = lists.div(state["exp_avg_sq"], bias_correction(step, self.beta2, dtype))
        return lists.div(mean, lists.add_(lists.sqrt(square), self.eps))


def bias_correction(step: list[Tensor], beta: float, dtype: torch.dtype) -> list[Tensor]:
    """Return 1 - β^t for step t, where ``step`` holds t-1."""
    return lists.scalarwise(lambda t: 1.0 - lists.power(beta, (t + 1).to(dtype)), step)


def ema_(average: list[Tensor], values: list[Tensor], beta: float, active: Flags) -> None:
    """Set average ← β average + (1-β) values on the active tensors; the others keep theirs."""
    lists.mul_(average, masked(beta, active, idle=1.0))
    lists.add_(average, lists.mul(values, masked(1.0 - beta, active)))
