"""The candidates for the default pool, which `tests.benchmarks.poolselect` compares."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from funnel import SGD, Adagrad, Expert
from funnel.pool.expert import DEFAULT_EXPERTS


@dataclass(frozen=True)
class Candidate:
    """Experts, and arguments of `funnel.pool.pool.Pool` that differ from its defaults."""

    experts: tuple[Expert, ...]
    mixing: dict[str, Any] = field(default_factory=dict)


def adagrad(lrs: Iterable[float], gain_lrs: Iterable[float]) -> tuple[Expert, ...]:
    inner, gain_lrs = Adagrad(initial_accumulator_value=0.01), list(gain_lrs)
    return tuple(Expert(inner, lr, gain_lr, 0.03) for lr in lrs for gain_lr in gain_lrs)


def sgd(
    lrs: Iterable[float], gain_lrs: Iterable[float], scale_lr: float = 0.03
) -> tuple[Expert, ...]:
    gain_lrs = list(gain_lrs)
    return tuple(Expert(SGD(), lr, gain_lr, scale_lr) for lr in lrs for gain_lr in gain_lrs)


ADAGRAD16 = adagrad((0.003, 0.01, 0.03, 0.1), (0.01, 0.03, 0.1, 0.3))
ADAGRAD4 = adagrad((0.003, 0.01), (0.1, 0.3))
SGD4 = (0.03, 0.1, 0.3, 1.0)
TWENTY = tuple(
    replace(e, steps=20, lr=e.lr / 2 if e.inner == SGD() else e.lr) if e.steps > 1 else e
    for e in DEFAULT_EXPERTS
)
LESS_SHARING = {"switch_rates": (1e-3,)}

POOLS = {
    "default": Candidate(DEFAULT_EXPERTS),
    "default, twenty steps": Candidate(TWENTY),
    "default, none renewed": Candidate(tuple(replace(e, renews=False) for e in DEFAULT_EXPERTS)),
    "default, all renewed": Candidate(tuple(replace(e, renews=True) for e in DEFAULT_EXPERTS)),
    "default, one step": Candidate(tuple(replace(e, steps=1) for e in DEFAULT_EXPERTS)),
    "AdaGrad 16": Candidate(ADAGRAD16),
    "AdaGrad 16 + SGD 8, σ = 1e-3": Candidate(ADAGRAD16 + sgd(SGD4, (1e-3, 1e-2)), LESS_SHARING),
    "AdaGrad 16 + SGD 8": Candidate(ADAGRAD16 + sgd(SGD4, (1e-3, 1e-2))),
    "AdaGrad 4 + SGD 8": Candidate(ADAGRAD4 + sgd(SGD4, (0.01, 0.03))),
    "AdaGrad 4 + SGD 12": Candidate(
        ADAGRAD4
        + sgd((0.03, 0.1, 0.3), (0.03, 0.1), scale_lr=0.1)
        + sgd(SGD4, (0.01,))
        + sgd((0.3, 1.0), (0.03,))
    ),
}
