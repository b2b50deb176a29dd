"""The learners that Funnel is compared with, each with every setting it may be tuned to.

Peers get standardized inputs, except `raw` ones, and are credited with their best setting for each
stream: an oracle that no user has. Some come from optional packages.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from streams.errors import FunnelError

if TYPE_CHECKING:  # help names the peers, and does not wait for numpy
    from streams.prequential import Learner
    from streams.sources.catalog import Stream

Make = Callable[["Stream", int], "Learner"]
"""Makes a learner, given the stream that it will learn and a seed."""


class UnknownPeerError(FunnelError, ValueError):
    """No peer has this name; the message lists the names."""


@dataclass(frozen=True)
class Peer:
    """A kind of learner, and the settings among which the best is chosen in hindsight."""

    title: str
    settings: Mapping[str, Make]
    module: str = "torch"
    """Module that must be importable; its package has the same name, or comes with Funnel."""
    raw: bool = False
    """True if it gets the inputs as they are: trees split them, whatever their scale."""
    max_features: int = 1_000_000
    """Width above which it would take minutes a stream, and is skipped."""

    def missing(self, stream: "Stream") -> str:
        """Return why the peer cannot run on the stream; empty if it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"needs {self.module}: pip install 'funnel-stream[bench]'"
        if stream.width > self.max_features:
            return f"would take minutes on {stream.width} features"
        return ""


def find_peers(names: Sequence[str]) -> dict[str, Peer]:
    """Return the peers of these names; ``all`` stands for all of them.

    Raises:
        UnknownPeerError: there is no such peer.
    """
    if unknown := [name for name in names if name not in (*PEERS, "all")]:
        raise UnknownPeerError(f"no peer {unknown[0]!r}; there are {', '.join(PEERS)}, all")
    return {name: peer for name, peer in PEERS.items() if name in names or "all" in names}


def _torch(
    path: str, grid: Mapping[str, Sequence[float]], at_shifts: bool = False
) -> dict[str, Make]:
    """Return the optimizer ``module:name`` at each point of a grid of its arguments.

    Args:
        path: module and name of the optimizer.
        grid: values of each argument.
        at_shifts: whether it restarts at each shift, as an oracle does.
    """
    points = (dict(zip(grid, point, strict=True)) for point in product(*grid.values()))
    return {
        ", ".join(f"{key} {value:g}" for key, value in point.items()): partial(
            _torch_learner, path, point, at_shifts
        )
        for point in points
    }


def _torch_learner(
    path: str, arguments: Mapping[str, float], at_shifts: bool, stream: "Stream", seed: int
) -> "Learner":
    from streams.peers.torch_learner import TorchLearner

    make = partial(resolve_name(path), **arguments)
    resets = [shift.example for shift in stream.shifts if shift.example] if at_shifts else []
    return TorchLearner(stream.width, stream.classes, make, resets)


def _variants(**settings: Mapping[str, Make]) -> dict[str, Make]:
    return {f"{v}, {name}": make for v, found in settings.items() for name, make in found.items()}


def _scikit_learner(arguments: dict[str, Any], stream: "Stream", seed: int) -> "Learner":
    from sklearn.linear_model import SGDClassifier

    from streams.peers.library_learners import ScikitLearner

    model = SGDClassifier(loss="log_loss", random_state=seed, **arguments)
    return ScikitLearner(model, stream.classes)


def _vowpal_wabbit(options: str, stream: "Stream", seed: int) -> "Learner":
    from streams.peers.library_learners import VowpalWabbitLearner

    return VowpalWabbitLearner(stream.classes, f"--random_seed {seed} {options}")


def _softmax(rule: str, lr: float, bias: bool, stream: "Stream", seed: int) -> "Learner":
    from river import linear_model, optim

    from streams.peers.library_learners import RiverLearner

    return RiverLearner(
        linear_model.SoftmaxRegression(getattr(optim, rule)(lr)), bias, stream.classes
    )


def _river(
    path: str, arguments: Mapping[str, object], has_seed: bool, stream: "Stream", seed: int
) -> "Learner":
    from streams.peers.library_learners import RiverLearner

    more = {"seed": seed} if has_seed else {}
    return RiverLearner(resolve_name(path)(**arguments, **more), classes=stream.classes)


def _grid(path: str, name: str, values: Sequence[int], has_seed: bool = True) -> dict[str, Make]:
    """Return one of river's models for each value of an argument."""
    return {f"{name} {v}": partial(_river, path, {name: v}, has_seed) for v in values}


def bagging(n_models: int, seed: int) -> Any:
    """Return river's leveraging bagging of so many Hoeffding trees."""
    from river.ensemble import LeveragingBaggingClassifier
    from river.tree import HoeffdingTreeClassifier

    return LeveragingBaggingClassifier(HoeffdingTreeClassifier(), n_models, seed=seed)


def neighbours(n_neighbors: int) -> Any:
    """Return river's nearest neighbours among the last 1,000 examples."""
    from river.neighbors import KNNClassifier, LazySearch

    return KNNClassifier(n_neighbors, LazySearch(window_size=1_000))


_CONSTANT = {"learning_rate": "constant", "penalty": None}
_ADAGRAD = {
    "lr": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "initial_accumulator_value": (0.0, 0.1),
}
_FREE = {"lr": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)}
_VOWPAL = (0.005, 0.02, 0.1, 0.5, 2.5, 10.0, 40.0)

TREES = (10, 30, 100)
"""Numbers of trees that forests are tuned to."""

PEERS: dict[str, Peer] = {
    "adagrad": Peer("AdaGrad", _torch("torch.optim:Adagrad", _ADAGRAD)),
    "adagrad-reset": Peer(
        "AdaGrad, reset at each shift by an oracle",
        _torch("torch.optim:Adagrad", _ADAGRAD, at_shifts=True),
    ),
    "rmsprop": Peer(
        "RMSProp",
        _torch("torch.optim:RMSprop", {"lr": (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)}),
    ),
    "adam": Peer(
        "Adam",
        _torch("torch.optim:Adam", {"lr": (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)}),
    ),
    "sgd": Peer(
        "SGD", _torch("torch.optim:SGD", {"lr": (3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)})
    ),
    "momentum": Peer(
        "SGD, momentum 0.9",
        _torch(
            "torch.optim:SGD",
            {"lr": (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), "momentum": (0.9,)},
        ),
    ),
    "hypergradient": Peer(
        "hypergradient descent (SGD-HD)",
        _torch(
            "streams.peers.hypergradient:HypergradientSGD",
            {
                "lr": (3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
                "hyper_lr": (1e-5, 1e-4, 1e-3, 0.01, 0.1),
            },
        ),
    ),
    "dadaptation": Peer(
        "D-Adaptation",
        _variants(
            SGD=_torch("dadaptation:DAdaptSGD", _FREE),
            AdaGrad=_torch("dadaptation:DAdaptAdaGrad", _FREE),
            Adam=_torch("dadaptation:DAdaptAdam", _FREE),
        ),
        "dadaptation",
    ),
    "prodigy": Peer("Prodigy", _torch("prodigyopt:Prodigy", _FREE), "prodigyopt"),
    "schedule-free": Peer(
        "schedule-free",
        _variants(
            SGD=_torch(
                "schedulefree:SGDScheduleFree",
                {"lr": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)},
            ),
            AdamW=_torch(
                "schedulefree:AdamWScheduleFree", {"lr": (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)}
            ),
        ),
        "schedulefree",
    ),
    "scikit-learn": Peer(
        "scikit-learn SGDClassifier, log loss",
        {
            f"eta0 {eta0:g}": partial(_scikit_learner, {**_CONSTANT, "eta0": eta0})
            for eta0 in (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
        }
        | {"optimal, its default": partial(_scikit_learner, {})},
        "sklearn",
    ),
    "vw": Peer(
        "Vowpal Wabbit, its adaptive rule",
        {f"-l {lr:g}": partial(_vowpal_wabbit, f"-l {lr}") for lr in _VOWPAL},
        "vowpalwabbit",
    ),
    "vw-coin": Peer(
        "Vowpal Wabbit --coin",
        {"default": partial(_vowpal_wabbit, "--coin")},
        "vowpalwabbit",
    ),
    "river-softmax": Peer(
        "river SoftmaxRegression",
        {
            f"{rule} {lr:g}{'' if bias else ', no bias'}": partial(_softmax, rule, lr, bias)
            for rule, rates in (
                ("SGD", (1e-3, 3e-3, 0.01, 0.03, 0.1)),
                ("AdaGrad", (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
            )
            for lr in rates
            for bias in (True, False)
        },
        "river",
        max_features=100,
    ),
    "river-tree": Peer(
        "river HoeffdingAdaptiveTreeClassifier",
        {"default": partial(_river, "river.tree:HoeffdingAdaptiveTreeClassifier", {}, True)},
        "river",
        raw=True,
        max_features=100,
    ),
    "river-forest": Peer(
        "river ARFClassifier",
        _grid("river.forest:ARFClassifier", "n_models", TREES),
        "river",
        raw=True,
        max_features=100,
    ),
    "river-patches": Peer(
        "river SRPClassifier",
        _grid("river.ensemble:SRPClassifier", "n_models", TREES),
        "river",
        raw=True,
        max_features=100,
    ),
    "river-bagging": Peer(
        "river LeveragingBaggingClassifier, Hoeffding trees",
        _grid("streams.peers.peers:bagging", "n_models", TREES),
        "river",
        raw=True,
        max_features=100,
    ),
    "river-mondrian": Peer(
        "river AMFClassifier",
        _grid("river.forest:AMFClassifier", "n_estimators", TREES),
        "river",
        raw=True,
        max_features=100,
    ),
    "river-neighbours": Peer(
        "river KNNClassifier, the last 1,000",
        _grid("streams.peers.peers:neighbours", "n_neighbors", (1, 3, 5, 11), has_seed=False),
        "river",
        max_features=100,
    ),
}

QUICK = ("adagrad", "rmsprop", "adam", "sgd", "momentum")
"""Peers that need no other package and take seconds."""
