"""The spec of a model, which is fixed for life, and its hyperparameters, which may change.

Settings and the command line read this module, so it imports neither torch nor the optimizers.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from service.fold.task import Task

SHADOW_LR = {"sgd": 0.03, "adagrad": 0.1, "adagrad-ema": 0.1, "rmsprop": 1e-3, "adam": 1e-3}
"""The plain optimizers, with the learning rates of shadows that name none."""
OPTIMIZERS = ("pool", "funnel", *SHADOW_LR)
FOLD_VERSION = 5
"""The arithmetic of a step; checkpoints and cuts name it. Raise it whenever equal states and equal
batches no longer give equal states, and let `service.fold.step.Fold.can_replay` say which older
cuts give the same bits.

1: a single optimizer was not a pool, and recoveries from drift events had their own definition.
2: every learner is a pool, and recovery has one definition (`service.fold.drift.monitor.Monitor`).
3: the statistics of the inputs are robust (`service.fold.standardizer`), a drift event has its
   direction and its accuracies from where the change was seen, and a user's module that changes
   its inputs in place changes a copy of them.
4: drift is also found in the loss minus that of the majority floor (`service.fold.drift.excess`).
5: of all families, neighbours compare examples as they were standardized when they came, the leaves
   of trees are sums of integers, and the examples of fast batches wait.
"""
MAX_EXPERTS = 6
"""Experts of the default pool."""
LINEAR, FAMILIES = "linear", ("mlp", "trees", "neighbours", "frequencies")
"""The family that every model ``auto`` has, and those that it may have."""
RECENT = "recent"
"""How the experts of ``frequencies`` are called where numbers are predicted."""
UNSET = (
    "no_change",
    "is_narrow",
    "is_quick",
    "compares_codes",
    "bounds_floors",
    "follows_jumps",
    "scores_as_sent",
    "levels",
    "weighs_families",
    "is_fused",
)
"""Fields of a spec that no setting chooses: a log goes on with those with which it began."""


@dataclass(frozen=True)
class Size:
    """How large a learner's tensors are. In a model of rows they grow with its schema."""

    features: int
    """Dense inputs, with room for more."""
    classes: int
    """Classes, with room for more."""
    active: int
    """Inputs that are not 0 in a typical row; learning rates of the pool's experts go by it."""
    opened: int
    """Classes that have a label; the others have the probability 0."""
    codes: int = 0
    """Keys of a row that are inputs of trees, with room for more."""
    used: tuple[int, int] = (0, 0)
    """How many of these keys, and of the dense inputs, there are by now."""

    @property
    def scored(self) -> tuple[int, int]:
        """Classes that are open and that there is room for, as they are scored: numbers are of one
        class."""
        return (self.opened, self.classes) if self.classes else (1, 1)


@dataclass(frozen=True)
class Spec:
    """All that is fixed for a model's life; a checkpoint of another spec is refused."""

    model: str
    features: int
    classes: int
    hidden: tuple[int, ...]
    optimizer: str
    standardize: bool
    seed: int
    experts: int = 0
    """Number of experts if the optimizer is the pool; otherwise 0."""
    schema: str = ""
    """The schema of rows that the model begins with, as canonical JSON; empty for dense features.
    With a schema, ``features`` and ``classes`` are 0: they grow."""
    table_bits: int = 0
    """2^table_bits slots for the keys of categories; 0 without rows, or for none."""
    task: str = "multiclass"
    """The task, as `service.fold.task.Task` parses it. Where labels are numbers, there are 0
    classes."""
    calibrate: bool = False
    """True if answered probabilities are calibrated (`service.fold.calibration`)."""
    no_change: bool = False
    """True if the last known class is an expert of every pool, served or a shadow, too
    (`funnel.pool.persistence`). No setting chooses it: it is so in every new model except
    ``auto``, and a log goes on as it began."""
    is_narrow: bool = False
    """True if rows have little room for more columns (`service.fold.state.size_of`). No setting
    chooses it: it is so in every new model of rows, and a log goes on as it began."""
    is_quick: bool = False
    """True if the deviation of answered means follows errors that shrink or grow fast
    (`funnel.pool.deviation`). No setting chooses it: it is so in every new model of the task
    ``regression``, and a log goes on as it began."""
    compares_codes: bool = False
    """True if neighbours compare categories, too (`funnel.families.compared`). No setting chooses
    it: it is so in every new model ``auto`` of rows, and a log goes on as it began."""
    bounds_floors: bool = False
    """True if a wild number moves the floors of numbers no further than the learner
    (`service.fold.target.Target.bounded`). No setting chooses it: it is so in every new model of
    numbers, and a log goes on as it began."""
    follows_jumps: bool = False
    """True if the deviation of answered means follows, after one large batch, errors that have
    become many times larger (`funnel.pool.deviation.reach`), and is blank again where the unit of
    numbers has (`funnel.pool.deviation.jumped`), or before the first batch. No setting chooses it:
    it is so in every new model of numbers, and a log goes on as it began."""
    scores_as_sent: bool = False
    """True if errors of numbers are scored against the numbers as they were sent, and not within
    the bounds in which a learner sees them. No setting chooses it: it is so in every new model of
    numbers, and a log goes on as it began."""
    levels: bool = False
    """True if calibrated probabilities can level off where labels are wrong however sure the model
    is (`service.fold.calibration`). No setting chooses it: it is so in every new model that is
    calibrated, and a log goes on as it began."""
    weighs_families: bool = False
    """True if, of at most 64 inputs, each family of experts is a part of the mixture, runs of equal
    labels count less there, and linear experts of second order learn, too
    (`funnel.families.mixture`). No setting chooses it: it is so in every new model ``auto`` of
    dense features and classes, and a log goes on as it began."""
    is_fused: bool = False
    """True if compiled steps take the batches of the served model that they can take
    (`funnel.pool.fused.linear`), which rounds otherwise. No setting chooses it: it is so in every
    new linear model, or ``auto``, of dense features and several classes, learned by Funnel or its
    pool, and a log goes on as it began."""
    families: tuple[str, ...] = ()
    """LINEAR, the families of FAMILIES that a model ``auto`` has, and ``package.module:factory`` of
    those that a user adds, in alphabetical order. Empty for all of FAMILIES and no other."""

    @property
    def predicts(self) -> Task:
        """The task of the model."""
        return Task.parse(self.task)

    @property
    def size(self) -> Size:
        """The size of a model of dense features, which never changes."""
        width = self.features
        return Size(width, self.classes, width, self.classes, used=(0, width))

    @property
    def shape(self) -> tuple[int, int] | None:
        """Numbers of features and classes; None for rows with named columns."""
        return None if self.schema else (self.features, self.classes)

    def fields(self) -> dict[str, Any]:
        """Return the spec as JSON shows it. Dense features have no schema, and show none. A
        field that earlier versions did not have is not shown where it is as it was then."""
        found = asdict(self)
        if not self.schema:
            del found["schema"], found["table_bits"]
        if self.task == "multiclass":
            del found["task"]
        for name in ("calibrate", *UNSET, "families"):
            if not found[name]:
                del found[name]
        return found

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Spec":
        """Return the spec that was written as JSON."""
        if fields["optimizer"] != "pool":  # older versions recorded it for a pool among the shadows
            fields = fields | {"experts": 0}
        tuples = {name: tuple(fields.get(name, ())) for name in ("hidden", "families")}
        return cls(**fields | tuples)

    def differences(self, other: "Spec") -> list[tuple[str, object, object]]:
        """Return each field in which another spec differs: its name, that value, and the own one.

        A field is not named if no setting has to change for it: the experts of a pool that has all
        of them, and layers that the other model does not have, where another field differs;
        and those of UNSET, which no setting chooses.

        >>> pool = Spec("logistic", 6, 3, (), "pool", True, 0, experts=6)
        >>> pool.differences(replace(pool, optimizer="funnel", experts=0))
        [('optimizer', 'funnel', 'pool')]
        """
        mine, theirs = asdict(self), asdict(other)
        if mine["schema"] and theirs["schema"] and mine["schema"] != theirs["schema"]:
            mine["schema"], theirs["schema"] = "what SCHEMA declares now", "declared otherwise"
        unset = set(UNSET)
        if other.optimizer != self.optimizer and other.experts in (0, MAX_EXPERTS):
            unset.add("experts")
        if other.model != self.model and not other.hidden:
            unset.add("hidden")
        return [(k, theirs[k], mine[k]) for k in mine if mine[k] != theirs[k] and k not in unset]


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters that an operator may change in a running model; the log records it."""

    lr: float
    momentum: float
    gain_lr: float
    scale_lr: float
    loss_guard: float = 0.0
    """Width of the loss guard (`service.fold.loss_guard`), in spreads; 0 for none."""
    shadow: tuple[str, ...] = ()
    """Baselines that learn from the same batches as the served model; `Shadow` parses them."""
    class_weights: str = "none"
    """``none``, or ``balanced``, which lets an example count as its class is rare
    (`service.fold.scoring.floors.Floors.balance`)."""

    @property
    def is_balanced(self) -> bool:
        """True if examples count as their class is rare."""
        return self.class_weights == "balanced"

    def fields(self) -> dict[str, Any]:
        """Return them as JSON shows them, without class weights that are as before there were
        any."""
        found = asdict(self)
        if self.class_weights == "none":
            del found["class_weights"]
        return found

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Hyperparameters":
        """Return the hyperparameters that were written as JSON."""
        return cls(**fields | {"shadow": tuple(fields.get("shadow", ()))})


@dataclass(frozen=True)
class Shadow:
    """A baseline as the setting names it, ``name`` or ``name:lr``.

    >>> Shadow.parse("adam:0.003")
    Shadow(name='adam:0.003', optimizer='adam', lr=0.003)
    """

    name: str
    """The value of the label ``learner`` in its metrics."""
    optimizer: str
    lr: float | None
    """None takes the optimizer's own default."""

    @classmethod
    def parse(cls, text: str) -> "Shadow":
        """Return the baseline that a text names.

        Raises:
            ValueError: there is no such optimizer, or the learning rate is not above 0.
        """
        optimizer, colon, rate = text.partition(":")
        if optimizer not in OPTIMIZERS:
            raise ValueError(
                f"unknown optimizer {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}"
            )
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
