"""Arithmetic on lists of tensors: foreach kernels in eager mode, plain operators when compiled.

Eager PyTorch is fastest with one ``torch._foreach_*`` call for a whole list. Inductor is the other
way round: it keeps the result of every foreach operator in memory, but fuses plain operators on
one tensor into a single loop. So each operator here picks its form by who is asking, and the
equations in `funnel.update` are written once.

A further argument is a list (one entry per tensor), or one number or 0-dim tensor for them all. A
trailing underscore means in place, as in torch.

    >>> mul([torch.tensor(2.0), torch.tensor(3.0)], 10.0)
    [tensor(20.), tensor(30.)]
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Operator = Callable[..., list[Tensor]]


def _listwise(name: str) -> Operator:
    foreach: Callable[..., Any] = getattr(torch, f"_foreach_{name}")
    plain: Callable[..., Tensor] = getattr(Tensor, name)

    def apply(tensors: list[Tensor], *args: Any) -> list[Tensor]:
        if torch.compiler.is_compiling():
            return [
                plain(t, *(a[i] if isinstance(a, list) else a for a in args))
                for i, t in enumerate(tensors)
            ]
        result = foreach(tensors, *args)
        return tensors if result is None else list(result)

    return apply


def scalarwise(function: Callable[..., Tensor], *scalars: list[Tensor]) -> list[Tensor]:
    """Apply an elementwise function to lists of 0-dim tensors: in eager mode all N at once.

    Entries that experts have each their own of, [K, 1, …, 1], are taken one by one.

    >>> scalarwise(torch.maximum, [torch.tensor(1), torch.tensor(5)], [torch.tensor(3)] * 2)
    [tensor(3), tensor(5)]
    """
    if torch.compiler.is_compiling() or scalars[0][0].dim():
        return [function(*xs) for xs in zip(*scalars, strict=True)]
    return list(function(*map(torch.stack, scalars)).unbind())


def dot(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """Return the inner product of each pair, 0-dim."""
    return [torch.dot(x.flatten(), y.flatten()) for x, y in zip(xs, ys, strict=True)]


def stacked_dot(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """Return the inner products of the K experts in each pair of [K, …], as [K, 1, …, 1].

    One expert alone has that of `dot`, which rounds in another way.

    >>> stacked_dot([torch.tensor([[1.0, 2.0], [3.0, 4.0]])], [torch.ones(2, 2)])
    [tensor([[3.],
            [7.]])]
    """
    if len(xs[0]) == 1:
        return [d.view([1] * x.dim()) for d, x in zip(dot(xs, ys), xs, strict=True)]
    products = [torch.linalg.vecdot(_rows(x), _rows(y)) for x, y in zip(xs, ys, strict=True)]
    return _broadcastable(products, xs)


def stacked_norm(tensors: list[Tensor]) -> list[Tensor]:
    """Return ‖·‖₂ of the K experts in each of [K, …], as [K, 1, …, 1]."""
    norms = [torch.linalg.vector_norm(_rows(t), dim=1) for t in tensors]
    return _broadcastable(norms, tensors)


def _rows(stacked: Tensor) -> Tensor:
    return stacked.reshape(len(stacked), -1)


def _broadcastable(values: list[Tensor], to: list[Tensor]) -> list[Tensor]:
    return [v.view([-1] + [1] * (t.dim() - 1)) for v, t in zip(values, to, strict=True)]


add = _listwise("add")
div = _listwise("div")
exp = _listwise("exp")
mul = _listwise("mul")
neg = _listwise("neg")
norm = _listwise("norm")
reciprocal = _listwise("reciprocal")
sign = _listwise("sign")
sqrt = _listwise("sqrt")

add_ = _listwise("add_")
addcmul_ = _listwise("addcmul_")
clamp_max_ = _listwise("clamp_max_")
clamp_min_ = _listwise("clamp_min_")
mul_ = _listwise("mul_")
sub_ = _listwise("sub_")
