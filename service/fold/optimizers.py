"""Learners by the name of their optimizer: the pool, Funnel, and the plain ones."""

import torch

from funnel import SGD, Adagrad, AdagradEMA, Adam, Inner, RMSprop
from funnel.pool.expert import MATTER_MOST, Expert, for_width
from service.fold.learner import Learner
from service.fold.pooled import PoolLearner
from service.fold.single import SingleLearner
from service.fold.spec import MAX_EXPERTS, Hyperparameters, Spec

INNER: dict[str, Inner] = {
    "sgd": SGD(),
    "adagrad": Adagrad(initial_accumulator_value=0.1),
    "adagrad-ema": AdagradEMA(initial_accumulator_value=0.1),
    "rmsprop": RMSprop(),
    "adam": Adam(),
}


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
    """Return a learner with the optimizer ``optimizer``, one of OPTIMIZERS of `service.fold.spec`.

    ``funnel`` is Funnel(AdaGrad); the plain ones are Funnel at γp = γs = 0.

    Raises:
        service.fold.networks.ModelError: the model cannot be built.
    """
    if optimizer == "pool":
        count = spec.experts or MAX_EXPERTS  # a shadow has no count of its own
        return PoolLearner(spec, device, some_experts(count, spec.features))
    learns = optimizer == "funnel"
    return SingleLearner(
        spec, device, INNER["adagrad" if learns else optimizer], learns, hyperparameters
    )
