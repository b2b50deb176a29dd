"""What a model is, and the hyperparameters that may change while it lives."""

from dataclasses import dataclass
from typing import Any

FOLD_VERSION = 1
"""Version of the arithmetic of a step; whoever changes that raises it."""


def can_replay(version: int) -> bool:
    """Return whether this code can repeat the steps of a version bit for bit."""
    return version == FOLD_VERSION


@dataclass(frozen=True)
class Spec:
    """What the model is, for its whole life; a checkpoint of another spec is refused."""

    model: str
    features: int
    classes: int
    hidden: tuple[int, ...]
    optimizer: str
    standardize: bool
    seed: int
    experts: int = 0
    """Of the pool, if that is the optimizer; else 0."""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Spec":
        """Return the spec that was written as JSON."""
        if fields["optimizer"] != "pool":  # once it was noted of a pool in the shadows too
            fields = fields | {"experts": 0}
        return cls(**fields | {"hidden": tuple(fields["hidden"])})


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters that an operator may change in a running model; the log records it."""

    lr: float
    momentum: float
    gain_lr: float
    scale_lr: float
    loss_guard: float = 0.0
    """See `service.fold.loss_guard`; 0 for none."""
    shadow: tuple[str, ...] = ()
    """Baselines that learn beside the served model; see `service.fold.optimizers.Shadow`."""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Hyperparameters":
        """Return the rates that were written as JSON."""
        return cls(**fields | {"shadow": tuple(fields.get("shadow", ()))})
