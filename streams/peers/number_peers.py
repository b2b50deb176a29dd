"""The learners of numbers that Funnel is compared with on rows, each with every setting it may be
tuned to. They are credited with their best setting for each file: an oracle that no user has.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, TypeVar

from streams.peers.row_peers import PeerOf, among

if TYPE_CHECKING:  # help names the peers, and does not wait for numpy
    from streams.peers.number_learners import NumberLearner

T = TypeVar("T")
Make = Callable[[int], "NumberLearner"]
"""Makes a learner, given a seed."""
NumberPeer = PeerOf[Make]


def _mean(seed: int) -> "NumberLearner":
    from streams.peers.number_learners import Mean

    return Mean()


def _no_change(seed: int) -> "NumberLearner":
    from streams.peers.number_learners import LastNumber

    return LastNumber()


def _linear(optimizer: str, lr: float, seed: int) -> "NumberLearner":
    from river.linear_model import LinearRegression

    from streams.peers.number_learners import RiverLinear

    chosen = resolve_name(f"river.optim:{optimizer}")(lr)
    return RiverLinear(LinearRegression(chosen, intercept_lr=min(lr, 0.1)))


def _scikit(arguments: Mapping[str, object], seed: int) -> "NumberLearner":
    from sklearn.linear_model import SGDRegressor

    from streams.peers.number_learners import ScikitNumbers

    return ScikitNumbers(SGDRegressor(random_state=seed, shuffle=False, **arguments))


def _vowpal_wabbit(options: str, standardizes: bool, seed: int) -> "NumberLearner":
    from streams.peers.number_learners import VowpalWabbitNumbers

    return VowpalWabbitNumbers(f"--random_seed {seed} {options}", standardizes)


def _tree(leaves: str, seed: int) -> "NumberLearner":
    from river.tree import HoeffdingAdaptiveTreeRegressor

    from streams.peers.number_learners import RiverNumbers

    model = HoeffdingAdaptiveTreeRegressor(leaf_prediction=leaves, seed=seed)
    return RiverNumbers(model, is_numeric=leaves != "mean")


def _forest(leaves: str, seed: int) -> "NumberLearner":
    from river.forest import ARFRegressor

    from streams.peers.number_learners import RiverNumbers

    model = ARFRegressor(n_models=10, leaf_prediction=leaves, seed=seed)
    return RiverNumbers(model, is_numeric=leaves != "mean")


_LEAVES = {"mean": "means in leaves", "adaptive": "means or linear models in leaves"}


def of_vowpal_wabbit(
    make: "Callable[[str, bool, T], NumberLearner]",
) -> "dict[str, Callable[[T], NumberLearner]]":
    """Return the settings of Vowpal Wabbit by name.

    Args:
        make: takes options, whether the target is standardized, and what `Make` takes.
    """
    return {
        f"-l {lr:g}{', standardized target' * standardizes}": partial(
            make, f"-l {lr}", standardizes
        )
        for lr in (0.02, 0.1, 0.5, 2.5, 10.0)
        for standardizes in (False, True)
    }


def of_river(
    make: "Callable[[str, float, T], NumberLearner]",
) -> "dict[str, Callable[[T], NumberLearner]]":
    """Return the settings of river's linear regression by name.

    Args:
        make: takes the name of an optimizer, its learning rate, and what `Make` takes.
    """
    return {
        f"{optimizer} {lr:g}": partial(make, optimizer, lr)
        for optimizer, rates in (
            ("SGD", (1e-3, 0.003, 0.01, 0.03, 0.1)),
            ("AdaGrad", (0.01, 0.03, 0.1, 0.3, 1.0)),
        )
        for lr in rates
    }


NUMBER_PEERS: dict[str, NumberPeer] = {
    "mean": PeerOf("the mean of the numbers so far", {"default": _mean}),
    "no-change": PeerOf("the last known number", {"default": _no_change}),
    "scikit-learn": PeerOf(
        "scikit-learn SGDRegressor",
        {
            f"eta0 {eta0:g}, penalty {penalty}": partial(
                _scikit, {"learning_rate": "constant", "eta0": eta0, "penalty": penalty}
            )
            for eta0 in (1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1)
            for penalty in (None, "l2")
        }
        | {"invscaling, its default": partial(_scikit, {})},
        "sklearn",
    ),
    "vw": PeerOf(
        "Vowpal Wabbit, squared loss",
        of_vowpal_wabbit(_vowpal_wabbit),
        "vowpalwabbit",
    ),
    "river-linear": PeerOf(
        "river LinearRegression",
        of_river(_linear),
        "river",
    ),
    "river-tree": PeerOf(
        "river HoeffdingAdaptiveTreeRegressor",
        {text: partial(_tree, leaves) for leaves, text in _LEAVES.items()},
        "river",
    ),
    "river-forest": PeerOf(
        "river ARFRegressor, 10 trees",
        {text: partial(_forest, leaves) for leaves, text in _LEAVES.items()},
        "river",
    ),
}
QUICK = ("mean", "no-change", "scikit-learn", "vw")
"""Peers that take seconds; those that are not installed are skipped."""
FLOORS = ("mean", "no-change")
"""Peers that know nothing of the rows."""


def find_number_peers(names: Sequence[str]) -> tuple[dict[str, NumberPeer], dict[str, str]]:
    """Return the peers of these names that can learn numbers here, and why the others cannot.

    Args:
        names: of peers of any kind; ``all`` stands for all that can.
    """
    return among(NUMBER_PEERS, names, "it does not predict numbers")
