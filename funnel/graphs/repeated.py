"""What is made once for calls that come again and again: traces, and CUDA graphs."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

WINDOW = 64
"""Calls among which those of a signature are counted, before counting begins anew."""
CALLS_BEFORE = 8
"""Of them, those with one signature before something is made for it; three times as many once half
of MOST is made, so that sizes of chance leave room for that of full batches."""
MOST = 16
"""Signatures for which something is made; calls with others go without."""

Made = TypeVar("Made")


class Repeated(Generic[Made]):
    """What was made, by signature.

    Nothing is dropped to make room: neither a trace nor a CUDA graph gives all its memory back, so
    batches of ever other sizes would fill it. A copy begins with nothing, as what was made is bound
    to the tensors that it was made with.
    """

    def __init__(self) -> None:
        self._calls: Counter[Hashable] = Counter()
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
        if self._calls.total() >= WINDOW:
            self._calls.clear()
        self._calls[signature] += 1
        enough = CALLS_BEFORE if len(self._made) < MOST // 2 else 3 * CALLS_BEFORE
        return self._calls[signature] >= enough

    def keep(self, signature: Hashable, made: Made) -> None:
        """Keep what was made for a signature."""
        self._made[signature] = made


def signature_of(tensors: Sequence[Tensor]) -> Hashable:
    """Return what tells apart calls that need something else: shapes, dtypes and strides."""
    return tuple((t.shape, t.dtype, t.stride()) for t in tensors)
