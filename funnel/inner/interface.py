"""What an inner optimizer D is to Funnel: raw gradients in, preconditioned gradients g̃ out.

g̃ is a proposal at unit learning rate and points up the loss, as g does. Hyperparameters are the
fields of a frozen dataclass; state is explicit and belongs to the caller, who keeps it apart from
Funnel's own.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from funnel import tensorlists as lists

Rate = float | Tensor | list[Tensor]
"""A factor for a list of tensors: a number or 0-dim tensor for all, or a 0-dim tensor for each."""

StateLists = dict[str, list[Tensor]]


def masked(rate: Rate, active: list[Tensor] | None, idle: float = 0.0) -> Rate:
    """Return ``rate`` for the tensors whose ``active`` flag is 1.0, ``idle`` where it is 0.0.

    Exact: rate·1 + idle·(1-1). With ``active=None`` all tensors are active.
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
    """The interface of an inner optimizer; hyperparameters are the fields of the dataclass."""

    def init_state(self, param: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the state of one tensor before its first gradient, of ``param``'s shape."""
        del param, dtype
        return {}

    @abstractmethod
    def precondition(
        self,
        grads: list[Tensor],
        state: StateLists,
        step: list[Tensor],
        active: list[Tensor] | None,
    ) -> list[Tensor]:
        """Return g̃ and update ``state`` in place.

        Args:
            grads: g, finite, in the dtype of the state; not changed.
            state: for each key of `init_state` the list of that tensor.
            step: number of steps applied before this one (t-1), int64, 0-dim.
            active: 0-dim flags 1.0 or 0.0, or None for "all": where 0.0, the gradient is zero and
                the state must come out unchanged.
        """

    def to_spec(self) -> dict[str, Any]:
        """Return name and hyperparameters as plain values, as stored in a ``state_dict``."""
        return {"name": type(self).__name__, **asdict(self)}
