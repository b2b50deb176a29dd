"""The optimizers by name: Funnel, the plain ones, and those that shadow the served model."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, Inner, RMSprop
from service.spec import Rates

INNER: dict[str, Inner] = {
    "sgd": SGD(),
    "adagrad": Adagrad(initial_accumulator_value=0.1),
    "adagrad-ema": AdagradEMA(initial_accumulator_value=0.1),
    "rmsprop": RMSprop(),
    "adam": Adam(),
}
OPTIMIZERS = ("funnel", *INNER)

SHADOW_LR = {"sgd": 0.03, "adagrad": 0.1, "adagrad-ema": 0.1, "rmsprop": 1e-3, "adam": 1e-3}
"""Learning rates of baselines that are given none."""


@dataclass(frozen=True)
class Shadow:
    """A baseline as it is written, ``name`` or ``name:lr``.

    >>> Shadow.parse("adam:0.003")
    Shadow(name='adam:0.003', optimizer='adam', lr=0.003)
    """

    name: str
    """What ``learner=`` says in its metrics."""
    optimizer: str
    lr: float | None
    """None for the optimizer's own default."""

    @classmethod
    def parse(cls, text: str) -> "Shadow":
        """Return the baseline that a text names.

        Raises:
            ValueError: there is no such optimizer, or the learning rate is not above 0.
        """
        optimizer, colon, rate = text.partition(":")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"choose of {', '.join(OPTIMIZERS)}; {optimizer!r} is none of them")
        try:
            lr = float(rate) if colon else None
        except ValueError:
            lr = 0.0
        if lr is not None and not 0 < lr <= 1e6:
            raise ValueError(f"{text!r}: the learning rate must be a number above 0")
        return cls(text, optimizer, lr)

    def rates(self, served: Rates) -> Rates:
        """Return its hyperparameters, given those of the served model."""
        lr = self.lr if self.lr is not None else SHADOW_LR.get(self.optimizer, served.lr)
        return replace(served, lr=lr)


def make_optimizer(name: str, rates: Rates, module: nn.Module, on_host: bool = False) -> Funnel:
    """Return the optimizer called ``name``, one of OPTIMIZERS.

    ``funnel`` is Funnel(AdaGrad). The plain ones are Funnel at γp = γs = 0, which is the inner
    optimizer with heavy-ball momentum, bit for bit.
    """
    inner = INNER["adagrad" if name == "funnel" else name]
    return Funnel(
        module.named_parameters(),
        inner,
        skip_nonfinite=not on_host,
        traced=on_host,
        **optimizer_rates(name, rates),
    )


def optimizer_rates(name: str, rates: Rates) -> dict[str, Any]:
    """Return Funnel's arguments for the optimizer called ``name``."""
    learns = name == "funnel"
    return {
        "lr": rates.lr,
        "momentum": rates.momentum,
        "gain_lr": rates.gain_lr if learns else 0.0,
        "scale_lr": rates.scale_lr if learns else 0.0,
    }
