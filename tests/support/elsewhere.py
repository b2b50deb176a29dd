"""A device that is none: its tensors hold numbers of the CPU, and refuse to meet those of the host.

Code for a GPU can so be run without one. As on a GPU, an operator of tensors on both devices
raises, unless one of them is a single number, and NumPy cannot read a tensor that is elsewhere.
It knows neither streams nor inference mode.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ELSEWHERE = torch.device("meta")
"""A device without kernels of its own."""
BETWEEN = (torch.ops.aten.copy_.default, torch.ops.aten._foreach_copy_.default)
"""Operators that copy from device to device."""
READ = torch.ops.aten._local_scalar_dense.default


class Held(Tensor):
    """A tensor elsewhere."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Held":
        made: Held = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype,
            device=ELSEWHERE, requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return _run(func, args, kwargs or {})

    def tolist(self) -> object:
        return self.held.tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Held({self.held})"


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return _run(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Makes tensors of Python's numbers on the host first, as no operator is called for them."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        if func is torch.tensor and named.get("device") == ELSEWHERE:
            return torch.tensor(*args, **named | {"device": "cpu"}).to(ELSEWHERE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], Held):
            return args[0].held.new_tensor(*args[1:], **named).to(ELSEWHERE)
        return func(*args, **named)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Let the device exist during the block."""
    with _Mode(), _Made():
        yield ELSEWHERE


def _run(func: OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    tensors: list[Tensor] = []
    here = _here(args, tensors)
    named = {name: _here(value, tensors) for name, value in kwargs.items()}
    own = [tensor for tensor in tensors if type(tensor) is Held]
    others = [tensor for tensor in tensors if type(tensor) is not Held and tensor.dim()]
    if own and others and func not in BETWEEN:
        raise RuntimeError(f"{func}: tensors on two devices")
    device = kwargs.get("device")
    if device is not None:
        named["device"] = torch.device("cpu")
    found = func(*here, **named)
    if func._schema.is_mutable:  # it returns what it has changed, the argument itself
        same = {id(tensor.held): tensor for tensor in own}
        return _each(found, lambda tensor: same.get(id(tensor), tensor))
    is_there = device == ELSEWHERE or (device is None and bool(own))
    return _each(found, Held) if is_there and func is not READ else found


def _here(value: object, tensors: list[Tensor]) -> object:
    """Return a value with tensors of the host; add its tensors to a list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.held if type(value) is Held else value
    if isinstance(value, (list, tuple)):
        return type(value)([_here(part, tensors) for part in value])
    return value


def _each(value: object, change: Callable[[Tensor], Tensor]) -> object:
    """Return a value with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_each(part, change) for part in value])
    return value
