"""Traces and CUDA graphs by signature, made for signatures that recur."""

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

WINDOW = 64
"""Calls after which counting starts from zero again."""
CALLS_BEFORE = 8
"""Calls with one signature among them before something is made for it. Three times as many are
needed once half of MAX_SIGNATURES is used, so that chance sizes leave room for full batches."""
MAX_SIGNATURES = 16
"""Signatures for which something is made; calls with any other stay eager."""

Made = TypeVar("Made")


class Repeated(Generic[Made]):
    """Traces or graphs by signature.

    None is dropped to make room: neither a trace nor a CUDA graph returns all its memory, so
    batches of ever new sizes would fill it. A copy starts empty, because a trace is bound to the
    tensors that it was made with.
    """

    def __init__(self) -> None:
        self._calls: Counter[Hashable] = Counter()
        self._made: dict[Hashable, Made] = {}

    def __len__(self) -> int:
        return len(self._made)

    def __reduce__(self) -> tuple[type["Repeated[Made]"], tuple[()]]:
        return type(self), ()

    def find(self, signature: Hashable) -> Made | None:
        """Return the one for a signature, or None."""
        return self._made.get(signature)

    def is_due(self, signature: Hashable) -> bool:
        """Count a call for which there is none; return whether to make one and `keep` it."""
        if len(self._made) >= MAX_SIGNATURES:
            return False
        if self._calls.total() >= WINDOW:
            self._calls.clear()
        self._calls[signature] += 1
        enough = CALLS_BEFORE if len(self._made) < MAX_SIGNATURES // 2 else 3 * CALLS_BEFORE
        return self._calls[signature] >= enough

    def keep(self, signature: Hashable, made: Made) -> None:
        """Keep one for a signature."""
        self._made[signature] = made
