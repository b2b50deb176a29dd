"""Typed results of traces and captures: tuples of tensors, taken apart and put together again.

A trace and a CUDA graph know flat tuples of tensors alone. Here a value is a tensor or None, or a
list, a tuple or a named tuple of values. Two calls of one function whose tensors have the same
shapes must have None in the same places.

    >>> tensors, build = taken_apart((torch.tensor(1), [torch.tensor(2), torch.tensor(3)]))
    >>> build([t + 1 for t in tensors])
    (tensor(2), [tensor(3), tensor(4)])
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

Build = Callable[[Sequence[Tensor]], Any]


def flat(value: object) -> list[Tensor]:
    """Return the tensors of a value, in order.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in flat(part)]
    if value is None:
        return []
    raise TypeError(f"expected tensors, and lists and tuples of them, got {value!r}")


def taken_apart(value: object) -> tuple[list[Tensor], Build]:
    """Return the tensors of a value, and a function that builds such a value from others."""
    shape = _shape(value)
    return flat(value), lambda tensors: _built(shape, iter(tensors))


def _shape(value: object) -> Any:
    """Return None for a tensor, and otherwise the type with the shapes of the parts."""
    if isinstance(value, (list, tuple)):
        return type(value), [_shape(part) for part in value]
    return (type(None), []) if value is None else None


def _built(shape: Any, tensors: Iterator[Tensor]) -> Any:
    if shape is None:
        return next(tensors)
    kind, parts = shape
    if kind is type(None):
        return None
    if not any(parts):
        built: list[Any] = list(islice(tensors, len(parts)))
    else:
        built = [_built(part, tensors) for part in parts]
    if kind is list:
        return built
    return kind(*built) if hasattr(kind, "_fields") else tuple(built)


def signature_of(tensors: Sequence[Tensor]) -> tuple[tuple[torch.Size, torch.dtype, Any], ...]:
    """Return shapes, dtypes and strides: calls that differ in them need different traces."""
    return tuple((t.shape, t.dtype, t.stride()) for t in tensors)
