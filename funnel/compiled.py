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


def _is_alike(mine: Tensor, other: Tensor, tolerance: float) -> bool:
    if not tolerance or not mine.is_floating_point():
        return torch.equal(mine, other)
    return torch.allclose(mine, other, rtol=tolerance, atol=tolerance, equal_nan=True)


@contextmanager
def plainly() -> Iterator[None]:
    """Let plain operators run inside, in all threads."""
    before, _plain[0] = _plain[0], True
    try:
        yield
    finally:
        _plain[0] = before


def rehearsed(
    module: str, parts: Sequence[Callable[[], Mapping[str, Tensor]]], tolerance: float = 0.0
) -> str:
    """Choose the code that runs in this process in place of a module's loops, and return which.

    The loops are refused where a number of theirs differs by too much. It compiles for some seconds
    where no process has compiled them on this disk before.

    Args:
        module: its name.
        parts: they compute tensors, by name, by the loops or by the operators that are their twins.
        tolerance: how far numbers may be apart, as a share of them, and below 1 as a number; 0 to
            compare bits.
    """
    if loops(module) is None:
        reason = "they were refused" if is_installed() else "numba is not installed"
        return f"torch operators, as there are no compiled loops: {reason}"
    for part in parts:
        fast = part()
        with plainly():
            plain = part()
        for name, tensor in fast.items():
            if not _is_alike(tensor, plain[name], tolerance):
                refuse(module)
                kind = "numbers" if tolerance else "bits"
                return f"torch operators, as compiled loops gave other {kind} in {name}"
    return "compiled loops"


def compiled(function: F) -> F:
    """Return a function that numba compiles at its first call with arguments of given types.

    The machine code is kept on disk next to the module, or in the user's cache directory; where
    neither can be written, it lasts as long as the process. Floats are neither reordered nor
    contracted, and the interpreter's lock is free meanwhile.
    """
    return _decorated(function, frozenset())


def contracted(function: F) -> F:
    """Return a function like `compiled`, in which products and sums may be rounded once.

    Its bits depend on the machine; on one machine they repeat.
    """
    return _decorated(function, frozenset({"contract", "nsz"}))


def reordered(function: F) -> F:
    """Return a function like `contracted`, in which sums may also be taken in another order, and
    quotients and roots may be approximated, to a unit in the last place or two.

    Without this, no sum of floats is computed by the vector instructions of a CPU.
    """
    return _decorated(function, frozenset({"contract", "nsz", "reassoc", "arcp", "afn"}))


def _decorated(function: F, liberties: frozenset[str]) -> F:
    """Return a compiled function.

    Args:
        function: what numba compiles.
        liberties: what the compiler may do with floats, as LLVM names it. NaN and infinity are
            what they are in any case.
    """
    import numba

    def decorated(is_cached: bool) -> F:
        made = numba.njit(
            cache=is_cached, nogil=True, error_model="numpy", fastmath=set(liberties) or False
        )
        return cast(F, made(function))

    try:
        return decorated(is_cached=True)
    except RuntimeError:  # numba found no directory that can be written
        return decorated(is_cached=False)
