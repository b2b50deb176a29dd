"""A rehearsal of the compiled step: it is compiled, and its numbers are compared with those of the
torch operators that are its twins. Where they are too far apart, operators run instead.
"""

from functools import partial

import torch
from torch import Tensor

from funnel.compiled import loops, refuse, rehearsed
from funnel.pool.fused.linear import KERNELS
from service.fold.spec import Hyperparameters, Spec
from service.fold.standardizer import KERNELS as OF_INPUTS
from service.fold.state import State
from service.fold.step import Fold
from streams.batch import Batch

EXAMPLES, FEATURES, CLASSES, BATCHES = 40, 21, 3, 3
TOLERANCE = 1e-3
"""Numbers after few batches differ by a thousandth of this."""
RATES = Hyperparameters(lr=0.03, momentum=0.0, gain_lr=0.03, scale_lr=0.03)


def rehearse() -> str:
    """Choose the code that learns linear models in this process, and return which, in words.

    It compiles for some seconds where no process has compiled it on this disk before.
    """
    chosen = rehearsed(
        KERNELS, [partial(_learned, "funnel", 0), partial(_learned, "pool", 6)], TOLERANCE
    )
    if loops(KERNELS) is None:
        refuse(OF_INPUTS)
    return chosen


def _learned(optimizer: str, experts: int) -> dict[str, Tensor]:
    """Return the state of a model that has learned a little."""
    spec = Spec(
        "logistic", FEATURES, CLASSES, (), optimizer, True, 0, experts, no_change=True,
        is_fused=True,
    )  # fmt: skip
    state = State(spec, RATES, torch.device("cpu"))
    fold, generator = Fold(state), torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        features = torch.randn(EXAMPLES, FEATURES, generator=generator)
        labels = torch.randint(CLASSES, (EXAMPLES,), generator=generator)
        weights = torch.rand(EXAMPLES, generator=generator)
        fold.step(Batch(features.numpy(), labels.numpy(), weights.numpy()))
    return state.served.pool.tensors() | state.standardizer.tensors()
