"""What is made once for calls that come again and again: traces, and CUDA graphs."""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

CALLS_BEFORE = 8
"""Calls with one signature before anything is made for it."""
MOST = 16
"""Signatures for which something is made; calls with others go without."""
REMEMBERED = 1_024
"""Signatures whose calls are counted."""

Made = TypeVar("Made")


class Repeated(Generic[Made]):
    """What was made, by signature.

    Nothing is dropped to make room: neither a trace nor a CUDA graph gives all its memory back, so
    batches of ever other sizes would fill it. A copy begins with nothing, as what was made is bound
    to the tensors that it was made with.
    """

    def __init__(self) -> None:
        self._calls: dict[Hashable, int] = {}
        self._made: dict[Hashable, Made] = {}

    def __len__(self) -> int:
        return len(self._made)

    def __reduce__(self) -> tuple[type["Repeated[Made]"], tuple[()]]:
        return type(self), ()

    def find(self, signature: Hashable) -> Made | None:
        """Return what was made for a signature."""
        return self._made.get(signature)

    def is_due(self, signature: Hashable) -> bool:
        """Count a call for which nothing was found; say whether to make something and `keep` it."""
        if len(self._made) >= MOST:
            return False
        if len(self._calls) >= REMEMBERED:
            self._calls.clear()
        calls = self._calls[signature] = self._calls.get(signature, 0) + 1
        return calls >= CALLS_BEFORE

    def keep(self, signature: Hashable, made: Made) -> None:
        """Keep what was made for a signature."""
        self._made[signature] = made


def signature_of(tensors: Sequence[Tensor]) -> Hashable:
    """Return what tells apart calls that need something else: shapes, dtypes and strides."""
    return tuple((t.shape, t.dtype, t.stride()) for t in tensors)
