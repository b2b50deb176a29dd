"""The optimizers by name: the pool, Funnel, the plain ones; and those that shadow the served."""

from dataclasses import dataclass, replace

import torch

from funnel import SGD, Adagrad, AdagradEMA, Adam, Inner, RMSprop
from funnel.pool.expert import MATTER_MOST, Expert, for_width
from service.fold.learner import Learner
from service.fold.pooled import PoolLearner
from service.fold.single import SingleLearner
from service.fold.spec import Hyperparameters, Spec

INNER: dict[str, Inner] = {
    "sgd": SGD(),
    "adagrad": Adagrad(initial_accumulator_value=0.1),
    "adagrad-ema": AdagradEMA(initial_accumulator_value=0.1),
    "rmsprop": RMSprop(),
    "adam": Adam(),
}
OPTIMIZERS = ("pool", "funnel", *INNER)

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
            raise ValueError(f"{text!r}: the learning rate must be a number above 0, at most 1e6")
        return cls(text, optimizer, lr)

    def hyperparameters(self, served: Hyperparameters) -> Hyperparameters:
        """Return its hyperparameters, given those of the served model."""
        lr = self.lr if self.lr is not None else SHADOW_LR.get(self.optimizer, served.lr)
        return replace(served, lr=lr)


def some_experts(count: int, features: int) -> list[Expert]:
    """Return so many of the default experts for a width of inputs, those that matter most.

    >>> len(some_experts(4, 784))
    4
    """
    experts = for_width(features)
    return [experts[k] for k in sorted(MATTER_MOST[:count])]


def make_learner(
    spec: Spec, optimizer: str, hyperparameters: Hyperparameters, device: torch.device
) -> Learner:
    """Return a learner with the optimizer called ``optimizer``, one of OPTIMIZERS.

    ``funnel`` is Funnel(AdaGrad); the plain ones are Funnel at γp = γs = 0.

    Raises:
        service.models.ModelError: the model cannot be built.
    """
    if optimizer == "pool":
        count = spec.experts or len(MATTER_MOST)  # none are given of a shadow
        return PoolLearner(spec, device, some_experts(count, spec.features))
    learns = optimizer == "funnel"
    return SingleLearner(
        spec, device, INNER["adagrad" if learns else optimizer], learns, hyperparameters
    )
