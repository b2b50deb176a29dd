"""The interface of an inner optimizer D: raw gradients g in, preconditioned gradients g̃ out.

g̃ is the step proposed at unit learning rate; like g, it points up the loss. Hyperparameters are the
fields of a frozen dataclass. State is explicit: the caller holds it, separate from Funnel's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from funnel import tensorlists as lists

Rate = float | Tensor | list[Tensor]
"""A factor for a list of tensors: one number or 0-dim tensor for all, or a 0-dim tensor each."""

StateLists = dict[str, list[Tensor]]
"""The tensors of all parameters, for each key of an optimizer's state."""

Flags = list[Tensor] | None
"""A 0-dim 1.0 or 0.0 for each tensor, in the dtype of the state; None means 1.0 for all."""


Precondition = TypeVar("Precondition", bound=Callable[..., list[Tensor]])

_COORDINATEWISE: set[Callable[..., list[Tensor]]] = set()


def coordinatewise(precondition: Precondition) -> Precondition:
    """Declare that a ``precondition`` method looks at no coordinate for the sake of another.

    It may then be called with pieces of tensors, each with the ``step`` and ``active`` of its
    tensor. A subclass that overrides the method declares it again, or has whole tensors.
    """
    _COORDINATEWISE.add(precondition)
    return precondition


def masked(rate: Rate, active: Flags, idle: float = 0.0) -> Rate:
    """Return ``rate`` for each tensor whose ``active`` flag is 1.0, and ``idle`` for the others.

    The result is exact: rate·1 + idle·(1-1).
    """
    if active is None:
        return rate

    def choose(a: Tensor, r: float | Tensor) -> Tensor:
        return a * r + (1.0 - a) * idle if idle else a * r

    if isinstance(rate, list):
        return lists.scalarwise(choose, active, rate)
    return lists.scalarwise(lambda a: choose(a, rate), active)


@dataclass(frozen=True)
class Inner(ABC):
    """An inner optimizer; its hyperparameters are the fields of the dataclass."""

    averages: ClassVar[tuple[str, ...]] = ()
    """Keys of the state that start at zero."""

    def init_state(self, param: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the state of one tensor before its first gradient, in ``param``'s shape.

        A step of a table (`funnel.rows`) sees the touched rows of it.
        """
        return {key: torch.zeros_like(param, dtype=dtype) for key in self.averages}

    @classmethod
    def is_coordinatewise(cls) -> bool:
        """Return True if `precondition` was declared `coordinatewise`."""
        return cls.precondition in _COORDINATEWISE

    @abstractmethod
    def precondition(
        self, grads: list[Tensor], state: StateLists, step: list[Tensor], active: Flags
    ) -> list[Tensor]:
        """Return g̃ and update ``state`` in place.

        Args:
            grads: g, finite, in the dtype of the state; they are not changed.
            state: the tensors of each key that `init_state` returns.
            step: the number of steps applied before this one (t-1), int64, 0-dim; for the touched
                rows of a table, the visits of each, [rows, 1, …].
            active: where a flag is 0.0, the gradient is zero and the state must not change.
        """

    def to_spec(self) -> dict[str, Any]:
        """Return the name and hyperparameters as plain values, as a ``state_dict`` stores them."""
        return {"name": type(self).__name__, **asdict(self)}
