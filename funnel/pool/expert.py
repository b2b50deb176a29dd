"""The hyperparameters of one expert, and the experts of the default pool."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from funnel.checks import check_number
from funnel.inner.interface import Inner
from funnel.inner.native import SGD, Adagrad

BETA = 0.9
"""Memory of the average that the gains compare with."""
GAIN_BOUNDS = (math.log(1e-3), math.log(1e3))
SCALE_BOUNDS = (math.log(1e-2), math.log(1e2))
"""Ranges of log p and log s."""


@dataclass(frozen=True)
class Expert:
    """Hyperparameters of one expert; those of `funnel.Funnel` mean the same here.

    ``pull`` is how far its weights move towards the pool's weighted mean after each step, as a
    share of the distance: elastic averaging [S. Zhang, A. Choromanska, Y. LeCun, 'Deep learning
    with elastic averaging SGD', 2015]. Experts that are pulled profit at once from the expert that
    recovers first; experts that are not remember what they knew before a shift.

    ``renews`` sets whether the expert is renewed, back to how all experts started, as soon as it
    predicts worse than a model that knows nothing; see `funnel.pool.renewal`. Experts that do not
    renew are the pool's memory.

    ``steps`` is the number of steps that the inner optimizer takes through as many pieces of a
    batch while Funnel takes one; see `funnel.pool.walk`. Models other than linear layers with ReLU
    between them take one step: layers that normalize over a batch need whole batches.
    """

    inner: Inner
    lr: float
    gain_lr: float
    scale_lr: float
    momentum: float = 0.0
    pull: float = 0.0
    steps: int = 1
    renews: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Inner):
            raise TypeError(f"Expert.inner must be a funnel.Inner, got {self.inner!r}")
        check_number("Expert.lr", self.lr, low=0.0)
        check_number("Expert.gain_lr", self.gain_lr, low=0.0)
        check_number("Expert.scale_lr", self.scale_lr, low=0.0)
        check_number("Expert.momentum", self.momentum, low=0.0, below=1.0)
        check_number("Expert.pull", self.pull, low=0.0, high=1.0)
        if type(self.steps) is not int or self.steps < 1:
            raise ValueError(f"Expert.steps must be an integer of at least 1, got {self.steps!r}")


ADAGRAD = Adagrad(eps=0.0, initial_accumulator_value=0.01)
DEFAULT_EXPERTS: tuple[Expert, ...] = (
    Expert(ADAGRAD, 0.003, 0.1, 0.03),
    Expert(ADAGRAD, 0.01, 0.3, 0.03, pull=0.1, renews=True),
    Expert(ADAGRAD, 0.03, 0.003, 0.002, steps=8, renews=True),
    Expert(ADAGRAD, 0.01, 0.003, 0.002, steps=8, pull=0.1, renews=True),
    Expert(ADAGRAD, 0.001, 0.03, 0.03, steps=8),
    Expert(SGD(), 0.06, 0.005, 0.002, steps=8, pull=0.1, renews=True),
)
"""The experts for inputs of WIDTH features (`for_width` takes others). They were chosen on six
streams, as funnel/docs/pool.md describes."""
NUMBER_EXPERTS: tuple[Expert, ...] = (
    Expert(ADAGRAD, 0.1, 0.003, 0.002, steps=16),
    Expert(ADAGRAD, 0.03, 0.003, 0.002, steps=16, renews=True),
    Expert(ADAGRAD, 0.01, 0.1, 0.03, steps=16, pull=0.1),
    Expert(ADAGRAD, 0.3, 0.003, 0.002, steps=16, pull=0.1),
    Expert(SGD(), 0.003, 0.005, 0.002, steps=16),
    Expert(SGD(), 0.02, 0.005, 0.002, steps=16, pull=0.1),
)
"""The experts for numbers. All of them walk, so that no step overshoots (`funnel.pool.walk`); hence
larger rates than for classes. SGD's are smaller, as errors are not bounded."""
MATTER_MOST = (0, 3, 5, 2, 1, 4)
"""Their indices, in the order in which a smaller pool should take them."""
WIDTH = 784


def for_width(features: int, experts: Sequence[Expert] = DEFAULT_EXPERTS) -> tuple[Expert, ...]:
    """Return the experts with learning rates for inputs of another width: η √(WIDTH / features).

    The wider standardized inputs are, the further the same step in every weight moves an output.
    Rates have three digits.

    >>> [expert.lr for expert in for_width(196)[:2]]
    [0.006, 0.02]
    """
    factor = math.sqrt(WIDTH / features)
    return tuple(replace(expert, lr=float(f"{factor * expert.lr:.3g}")) for expert in experts)
