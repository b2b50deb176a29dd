"""The learners of quantiles that Funnel is compared with on rows: one learner for each quantile,
with every setting it may be tuned to. Each is credited with its best setting for each file and
quantile: an oracle that no user has. Nothing keeps the quantiles of a peer in order.
"""

from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from streams.peers.number_peers import of_river, of_vowpal_wabbit
from streams.peers.row_peers import PeerOf, among

if TYPE_CHECKING:  # help names the peers, and does not wait for numpy
    from streams.peers.number_learners import NumberLearner

Make = Callable[[float], "NumberLearner"]
"""Makes a learner of one quantile, within (0, 1)."""
QuantilePeer = PeerOf[Make]


def _so_far(quantile: float) -> "NumberLearner":
    from streams.peers.number_learners import QuantileSoFar

    return QuantileSoFar(quantile)


def _changes(quantile: float) -> "NumberLearner":
    from streams.peers.number_learners import QuantileOfChanges

    return QuantileOfChanges(quantile)


def _linear(optimizer: str, lr: float, quantile: float) -> "NumberLearner":
    from river.linear_model import LinearRegression
    from river.optim.losses import Quantile

    from streams.peers.number_learners import RiverLinear

    chosen = resolve_name(f"river.optim:{optimizer}")(lr)
    model = LinearRegression(chosen, loss=Quantile(quantile), intercept_lr=min(lr, 0.1))
    return RiverLinear(model)


def _vowpal_wabbit(options: str, standardizes: bool, quantile: float) -> "NumberLearner":
    from streams.peers.number_learners import VowpalWabbitNumbers

    loss = f"quantile --quantile_tau {quantile}"
    return VowpalWabbitNumbers(options, standardizes, loss)


QUANTILE_PEERS: dict[str, QuantilePeer] = {
    "mean": PeerOf("the quantiles of the numbers so far", {"default": _so_far}),
    "no-change": PeerOf(
        "the last known number and the quantiles of the changes so far", {"default": _changes}
    ),
    "vw": PeerOf(
        "Vowpal Wabbit, quantile loss",
        of_vowpal_wabbit(_vowpal_wabbit),
        "vowpalwabbit",
    ),
    "river-linear": PeerOf(
        "river LinearRegression, quantile loss",
        of_river(_linear),
        "river",
    ),
}
QUICK = ("mean", "no-change", "vw")
"""Peers that take seconds; those that are not installed are skipped."""
FLOORS = ("mean", "no-change")
"""Peers that know nothing of the rows."""


def find_quantile_peers(names: Sequence[str]) -> tuple[dict[str, QuantilePeer], dict[str, str]]:
    """Return the peers of these names that can learn quantiles here, and why the others cannot.

    Args:
        names: of peers of any kind; ``all`` stands for all that can.
    """
    return among(QUANTILE_PEERS, names, "it does not learn quantiles batch by batch")
