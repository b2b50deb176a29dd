"""The numbers of many tensors that Funnel keeps for each as a whole, in one tensor for each kind.

An operator on one tensor of N elements costs one call, on N tensors of one element N. A state that
is adopted consists of views, so it reads and writes as if each tensor had numbers of its own.

    >>> a, b = torch.zeros(3), torch.zeros(2)
    >>> scalars = Scalars([a, b], torch.float32)
    >>> states = [{key: torch.tensor(0) for key in OF_STATE} for _ in "ab"]
    >>> scalars.adopt([a, b], states)
    >>> _ = scalars.gather([a, b])["step"][0].add_(1)
    >>> states[0]["step"], states[1]["step"]
    (tensor(1), tensor(1))
"""

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

OF_STATE = ("step", "log_scale", "nonfinite")
OF_LAST_STEP = ("cosine", "gradient_norm")


class Scalars:
    """Scalars of the tensors of one parameter group on one device, with state of one dtype.

    Args:
        params: all of them, at least two.
        dtype: of the state.
    """

    def __init__(self, params: Sequence[Tensor], dtype: torch.dtype) -> None:
        self._params = list(params)
        self._slots = {p: slot for slot, p in enumerate(params)}
        counts = ("step", "nonfinite")
        self._together = {
            key: torch.zeros(
                len(params),
                dtype=torch.int64 if key in counts else dtype,
                device=params[0].device,
            )
            for key in (*OF_STATE, *OF_LAST_STEP)
        }
        self._views = {key: own.unbind() for key, own in self._together.items()}
        self._copies: dict[str, tuple[Tensor, list[Tensor]]] = {}

    def holds(self, params: Sequence[Tensor]) -> bool:
        """Return True if every one of the tensors has a slot."""
        return self._are_all(params) or all(p in self._slots for p in params)

    def has_adopted(self, params: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> bool:
        """Return True if the scalars of these states are views."""
        return all(
            all(map(is_, [state[key] for state in states], self._of(key, params)))
            for key in OF_STATE
        )

    def adopt(self, params: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> None:
        """Put views in the place of the scalars of these states, with the same values."""
        for p, state in zip(params, states, strict=True):
            for key in OF_STATE:
                view = self._views[key][self._slots[p]]
                if state[key] is not view:
                    view.copy_(state[key])
                    state[key] = view

    def gather(self, params: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Return the scalars of the state of some tensors, in the form that a step takes.

        A step that changes the result ends with `scatter`.
        """
        if self._are_all(params):
            return {key: [self._together[key]] for key in OF_STATE}
        if len(params) == 1:
            return {key: self._of(key, params) for key in OF_STATE}
        return {key: [torch.stack(self._of(key, params))] for key in OF_STATE}

    def scatter(
        self,
        params: Sequence[Tensor],
        gathered: dict[str, list[Tensor]],
        last: Sequence[list[Tensor]],
    ) -> list[tuple[Tensor, Tensor]]:
        """Keep what a step has changed, and return views of each tensor's cosine and norm.

        Args:
            params: those of `gather`.
            gathered: its result.
            last: cosines and norms of the step, in the same form.
        """
        changed = {**gathered, **dict(zip(OF_LAST_STEP, last, strict=True))}
        if self._are_all(params):
            for key in OF_LAST_STEP:
                self._together[key].copy_(changed[key][0])
        else:
            for key, scalars in changed.items():
                if scalars[0].dim():
                    torch._foreach_copy_(self._of(key, params), scalars[0].unbind())
                elif key in OF_LAST_STEP:
                    torch._foreach_copy_(self._of(key, params), scalars)
        cosines, norms = (self._of(key, params) for key in OF_LAST_STEP)
        return list(zip(cosines, norms, strict=True))

    def apart(self, name: str, together: Tensor) -> list[Tensor]:
        """Return the elements of a tensor one by one, until the next call with this name.

        They are views of a copy that stays, since to make N views costs more than to copy.
        """
        if len(together) < len(self._params):
            return list(together.unbind())
        if name not in self._copies:
            copy = torch.empty_like(together)
            self._copies[name] = copy, list(copy.unbind())
        copy, views = self._copies[name]
        copy.copy_(together)
        return views

    def _are_all(self, params: Sequence[Tensor]) -> bool:
        return len(params) == len(self._params) and all(map(is_, params, self._params))

    def _of(self, key: str, params: Sequence[Tensor]) -> list[Tensor]:
        views = self._views[key]
        if self._are_all(params):
            return list(views)
        return [views[self._slots[p]] for p in params]
