"""The learners that Funnel is compared with on rows, each with every setting it may be tuned to.

They are credited with their best setting for each file: an oracle that no user has.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Generic, TypeVar

from streams.peers.peers import TREES

if TYPE_CHECKING:  # help names the peers, and does not wait for numpy
    from streams.peers.row_learners import RowLearner

Make = Callable[[int, int], "RowLearner"]
"""Makes a learner, given the number of labels and a seed."""


MakeOf = TypeVar("MakeOf", covariant=True)


@dataclass(frozen=True)
class PeerOf(Generic[MakeOf]):
    """A kind of learner, and the settings among which the best is chosen in hindsight."""

    title: str
    settings: Mapping[str, MakeOf]
    module: str = "numpy"
    """Module that must be importable; its package has the same name."""

    @property
    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"needs {self.module}: pip install 'funnel-stream[bench]'"
        return ""


RowPeer = PeerOf[Make]


def _majority(classes: int, seed: int) -> "RowLearner":
    from streams.peers.row_learners import Majority

    return Majority(classes)


def _no_change(classes: int, seed: int) -> "RowLearner":
    from streams.peers.row_learners import NoChange

    return NoChange()


def _scikit(
    arguments: Mapping[str, object], has_ones: bool, classes: int, seed: int
) -> "RowLearner":
    from sklearn.linear_model import SGDClassifier

    from streams.peers.row_learners import ScikitRows

    model = SGDClassifier(loss="log_loss", random_state=seed, **arguments)
    return ScikitRows(model, classes, has_ones)


def _vowpal_wabbit(options: str, classes: int, seed: int) -> "RowLearner":
    from streams.peers.row_learners import VowpalWabbitRows

    return VowpalWabbitRows(classes, f"--random_seed {seed} {options}")


def _river(path: str, arguments: Mapping[str, object], classes: int, seed: int) -> "RowLearner":
    from streams.peers.row_learners import RiverRows

    return RiverRows(resolve_name(path)(**arguments, seed=seed), classes)


_RATES: Mapping[str, Mapping[str, object]] = {
    **{
        f"eta0 {eta0:g}": {"learning_rate": "constant", "penalty": None, "eta0": eta0}
        for eta0 in (1e-4, 1e-3, 0.01, 0.03, 0.1)
    },
    "optimal, its default": {},
}

ROW_PEERS: dict[str, RowPeer] = {
    "majority": PeerOf("the most frequent label so far", {"default": _majority}),
    "no-change": PeerOf("the last known label", {"default": _no_change}),
    "scikit-learn": PeerOf(
        "scikit-learn SGDClassifier, log loss",
        {
            f"{name}{', a column of ones' * has_ones}": partial(_scikit, arguments, has_ones)
            for has_ones in (False, True)
            for name, arguments in _RATES.items()
        },
        "sklearn",
    ),
    "vw": PeerOf(
        "Vowpal Wabbit, its adaptive rule",
        {f"-l {lr:g}": partial(_vowpal_wabbit, f"-l {lr}") for lr in (0.02, 0.1, 0.5, 2.5, 10.0)},
        "vowpalwabbit",
    ),
    "river-tree": PeerOf(
        "river HoeffdingAdaptiveTreeClassifier",
        {"default": partial(_river, "river.tree:HoeffdingAdaptiveTreeClassifier", {})},
        "river",
    ),
    "river-forest": PeerOf(
        "river ARFClassifier",
        {
            f"n_models {n}": partial(_river, "river.forest:ARFClassifier", {"n_models": n})
            for n in TREES
        },
        "river",
    ),
}
QUICK = ("majority", "no-change", "scikit-learn", "vw")
"""Peers that take seconds; those that are not installed are skipped."""


def find_row_peers(names: Sequence[str]) -> tuple[dict[str, RowPeer], dict[str, str]]:
    """Return the peers of these names that can learn rows here, and why the others cannot.

    Args:
        names: of peers of any kind; ``all`` stands for all that can.
    """
    return among(ROW_PEERS, names, "it takes dense features alone")


def among(
    peers: Mapping[str, PeerOf[MakeOf]], names: Sequence[str], otherwise: str
) -> tuple[dict[str, PeerOf[MakeOf]], dict[str, str]]:
    """Return the peers of these names that can run here, and why the others cannot.

    Args:
        peers: by name.
        names: of peers of any kind; ``all`` stands for all of ``peers``.
        otherwise: why a name that is not among them is not.
    """
    wanted = [*peers] if "all" in names else [*names]
    missing = {name: peers[name].missing if name in peers else otherwise for name in wanted}
    found = {name: peers[name] for name in wanted if not missing[name]}
    return found, {name: why for name, why in missing.items() if why}
