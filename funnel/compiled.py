"""Compiled loops, where numba is installed; else the torch operators that are their twins.

Both give the same bits, so no state depends on which of them ran.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., object])
_refused: set[str] = set()
_plain = [False]


def loops(module: str) -> ModuleType | None:
    """Return a module of compiled loops; None where plain operators run instead.

    Args:
        module: its name; it imports numba.
    """
    if _plain[0] or module in _refused or not is_installed():
        return None
    return _imported(module)


@cache
def is_installed() -> bool:
    """Return whether there is numba."""
    return find_spec("numba") is not None


@cache
def _imported(module: str) -> ModuleType:
    return import_module(module)


def refuse(module: str) -> None:
    """Let plain operators run in place of a module's loops from here on, in all threads.

    Args:
        module: its name.
    """
    _refused.add(module)


@contextmanager
def plainly() -> Iterator[None]:
    """Let plain operators run inside, in all threads."""
    before, _plain[0] = _plain[0], True
    try:
        yield
    finally:
        _plain[0] = before


def rehearsed(module: str, parts: Sequence[Callable[[], Mapping[str, Tensor]]]) -> str:
    """Choose the code that runs in this process in place of a module's loops, and return which.

    The loops are refused where a bit of theirs differs. It compiles for some seconds where no
    process has compiled them on this disk before.

    Args:
        module: its name.
        parts: they compute tensors, by name, by the loops or by the operators that are their twins.
    """
    if loops(module) is None:
        reason = "they were refused" if is_installed() else "numba is not installed"
        return f"torch operators, as there are no compiled loops: {reason}"
    for part in parts:
        fast = part()
        with plainly():
            plain = part()
        different = [name for name, tensor in fast.items() if not torch.equal(tensor, plain[name])]
        if different:
            refuse(module)
            return f"torch operators, as compiled loops gave other bits in {different[0]}"
    return "compiled loops"


def compiled(function: F) -> F:
    """Return a function that numba compiles at its first call with arguments of given types.

    The machine code is kept on disk next to the module, or in the user's cache directory; where
    neither can be written, it lasts as long as the process. Floats are neither reordered nor
    contracted, and the interpreter's lock is free meanwhile.
    """
    import numba

    def decorated(is_cached: bool) -> F:
        return cast(F, numba.njit(cache=is_cached, nogil=True, error_model="numpy")(function))

    try:
        return decorated(is_cached=True)
    except RuntimeError:  # numba found no directory that can be written
        return decorated(is_cached=False)
