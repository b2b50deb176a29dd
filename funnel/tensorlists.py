"""Arithmetic on lists of tensors: foreach kernels in eager mode, plain operators when compiled.

Eager PyTorch is fastest with one ``torch._foreach_*`` call for a whole list. Inductor is the
opposite: it keeps the result of every foreach operator in memory, but fuses plain operators on one
tensor into a single loop. Traces, and lists of one or two tensors, also cost least with plain
operators. Each operator here therefore chooses its form by its caller, so that the equations in
`funnel.update` are written once.

Every further argument is a list (one entry per tensor), or one number or 0-dim tensor for them all.
A trailing underscore means in place, as in torch.

    >>> mul([torch.tensor(2.0), torch.tensor(3.0)], 10.0)
    [tensor(20.), tensor(30.)]
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # documented, not in __all__

Operator = Callable[..., list[Tensor]]

FEW = 2
"""Longest list that is cheaper one by one: a foreach kernel on a GPU takes as long as three plain
ones, because it carries all its arguments."""


def _is_few(tensors: list[Tensor]) -> bool:
    """Return True if one plain operator per tensor costs less than one foreach operator for all."""
    return len(tensors) <= FEW or is_tracing()


def prefers_blocks(tensors: list[Tensor]) -> bool:
    """Return True if a chain of operators runs fastest on one piece of the tensors after the other.

    Compilers fuse the chain themselves, and a GPU wants all coordinates at once.
    """
    is_traced = torch.compiler.is_compiling() or is_tracing()
    return not is_traced and tensors[0].device.type == "cpu"


def _listwise(name: str) -> Operator:
    foreach: Callable[..., Any] = getattr(torch, f"_foreach_{name}")
    plain: Callable[..., Tensor] = getattr(Tensor, name)

    def apply(tensors: list[Tensor], *args: Any) -> list[Tensor]:
        if torch.compiler.is_compiling() or _is_few(tensors):
            return [
                plain(t, *(a[i] if isinstance(a, list) else a for a in args))
                for i, t in enumerate(tensors)
            ]
        result = foreach(tensors, *args)
        return tensors if result is None else list(result)

    return apply


def scalarwise(function: Callable[..., Tensor], *scalars: list[Tensor]) -> list[Tensor]:
    """Apply an elementwise function to lists of N 0-dim tensors; in eager mode to all N at once.

    Entries with one value per expert, [K, 1, …, 1], are computed one by one.

    >>> scalarwise(torch.maximum, [torch.tensor(1), torch.tensor(5)], [torch.tensor(3)] * 2)
    [tensor(3), tensor(5)]
    """
    if torch.compiler.is_compiling() or scalars[0][0].dim():
        return [function(*xs) for xs in zip(*scalars, strict=True)]
    return list(function(*map(torch.stack, scalars)).unbind())


def together(scalars: list[Tensor]) -> list[Tensor]:
    """Return N 0-dim tensors as a list of one tensor, [N].

    >>> together([torch.tensor(1), torch.tensor(5)])
    [tensor([1, 5])]
    """
    return [torch.stack(scalars)]


def add_scaled_(tensors: list[Tensor], others: list[Tensor], rate: Any) -> list[Tensor]:
    """Add rate · others in place, in one pass over memory where that is possible.

    >>> add_scaled_([torch.tensor(1.0)], [torch.tensor(2.0)], 10.0)
    [tensor(21.)]
    """
    if torch.compiler.is_compiling() or isinstance(rate, Tensor):
        return add_(tensors, mul(others, rate))
    if isinstance(rate, list):
        return addcmul_(tensors, others, rate)
    if _is_few(tensors):
        return [t.add_(o, alpha=rate) for t, o in zip(tensors, others, strict=True)]
    torch._foreach_add_(tensors, others, alpha=rate)
    return tensors


def clamp_(tensors: list[Tensor], low: float, high: float) -> list[Tensor]:
    """Clamp in place: a few tensors in one pass each, and many in two passes for all of them."""
    if torch.compiler.is_compiling() or (tensors[0].device.type == "cpu" and _is_few(tensors)):
        return [t.clamp_(low, high) for t in tensors]
    return clamp_max_(clamp_min_(tensors, low), high)


def lerp_(tensors: list[Tensor], to: list[Tensor], share: Any) -> list[Tensor]:
    """Move in place by this share of the way: x ← x + share (to - x)."""
    shares = share if isinstance(share, list) else [share] * len(to)
    if torch.compiler.is_compiling() or _is_few(tensors):
        return [x.lerp_(y, s) for x, y, s in zip(tensors, to, shares, strict=True)]
    torch._foreach_lerp_(tensors, to, share if isinstance(share, float) else shares)
    return tensors


def sub_product_(tensors: list[Tensor], xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """Subtract x ⊙ y in place."""
    if torch.compiler.is_compiling():
        return sub_(tensors, mul(xs, ys))
    if _is_few(tensors):
        each = zip(tensors, xs, ys, strict=True)
        return [t.addcmul_(x, y, value=-1) for t, x, y in each]
    torch._foreach_addcmul_(tensors, xs, ys, value=-1)
    return tensors


def power(base: float | Tensor, exponents: Tensor) -> Tensor:
    """Return base ** t for each exponent t, with the bits that it has alone.

    A CPU's vector instructions round some powers differently from the scalar ones, which torch uses
    for a single number and for numbers that lie apart in memory.

    Args:
        base: a number, or a 0-dim tensor.
        exponents: of any shape; so is the result.

    >>> power(0.5, torch.tensor([1.0, 2.0]))
    tensor([0.5000, 0.2500])
    """
    if exponents.dim() and exponents.device.type == "cpu" and not torch.compiler.is_compiling():
        exponents = torch.stack([exponents, exponents], dim=-1)[..., 0]
    powers: Tensor = base**exponents
    return powers


def dot(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """Return the inner product of each pair, 0-dim."""
    return [
        torch.dot(x, y) if x.dim() == 1 else torch.dot(x.flatten(), y.flatten())
        for x, y in zip(xs, ys, strict=True)
    ]


def finite_or_zero(tensors: list[Tensor], finite: list[Tensor]) -> list[Tensor]:
    """Return copies of the tensors whose 0-dim flag is True, and zeros for the others."""
    zero = tensors[0].new_zeros(())
    return [torch.where(f, t, zero) for f, t in zip(finite, tensors, strict=True)]


def stacked_dot(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """Return the inner product of each of the K experts in each pair of [K, …], as [K, 1, …, 1].

    For a single expert it is that of `dot`, which rounds differently.

    >>> stacked_dot([torch.tensor([[1.0, 2.0], [3.0, 4.0]])], [torch.ones(2, 2)])
    [tensor([[3.],
            [7.]])]
    """
    if len(xs[0]) == 1:
        return [d.view([1] * x.dim()) for d, x in zip(dot(xs, ys), xs, strict=True)]
    products = [torch.linalg.vecdot(_rows(x), _rows(y)) for x, y in zip(xs, ys, strict=True)]
    return _broadcastable(products, xs)


def stacked_norm(tensors: list[Tensor]) -> list[Tensor]:
    """Return ‖·‖₂ of each of the K experts in each tensor [K, …], as [K, 1, …, 1]."""
    norms = [torch.linalg.vector_norm(_rows(t), dim=1) for t in tensors]
    return _broadcastable(norms, tensors)


def stacked_mean(stacked: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over the K experts of one tensor [K, …], with these weights [K].

    >>> stacked_mean(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, 0.5]))
    tensor([2., 3.])
    """
    return (weights @ _rows(stacked)).view(stacked.shape[1:])


def weighted(values: Tensor, importance: Tensor | None) -> Tensor:
    """Return values of n examples times the weights of the examples.

    Args:
        values: [..., n], or broadcast to that.
        importance: the weights, fp32 [n]; None for 1.
    """
    return values if importance is None else values * importance


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
rsqrt = _listwise("rsqrt")
sign = _listwise("sign")
sqrt = _listwise("sqrt")

add_ = _listwise("add_")
addcmul_ = _listwise("addcmul_")
clamp_max_ = _listwise("clamp_max_")
clamp_min_ = _listwise("clamp_min_")
copy_ = _listwise("copy_")
mul_ = _listwise("mul_")
sub_ = _listwise("sub_")
