"""Any ``torch.optim`` optimizer as an inner optimizer, run on zero proxies.

The foreign optimizer steps at lr 1 from a proxy that is exactly zero. Minus the proxy *is* then its
preconditioned gradient, and no bits are lost to the size of the weights. It never sees the weights.
A trial of a few steps finds the optimizers that read them (for weight decay, averaging, trust
ratios or distances travelled), and Funnel refuses those.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from funnel.inner.interface import Flags, Inner, StateLists, coordinatewise
from funnel.inner.verbatim import load_verbatim

Factory = Callable[[list[Tensor]], Optimizer]


class ForeignInner:
    """A ``torch.optim`` optimizer over zero proxies of one group's parameters.

    Proxies are fp32, or fp64 for fp64 parameters.

    Args:
        factory: builds the optimizer for a list of tensors, e.g. ``torch.optim.NAdam`` or a
            ``functools.partial`` of it. Its learning rate is set to 1.

    It differs from a native inner optimizer in two ways. With ``skip_nonfinite`` it reads the N
    finite flags on the host once a step, because only a missing gradient leaves the state of *any*
    optimizer untouched. And it can be captured in a CUDA graph only if the foreign optimizer can.

    Raises:
        TypeError: the factory does not build a ``torch.optim.Optimizer``, or it builds one that
            reads the weights or needs a closure or sparse gradients.
        ValueError: the optimizer decays weights or maximizes; pass ``weight_decay`` or
            ``maximize`` to Funnel instead.
    """

    optimizer: Optimizer
    """It exists only after `for_group`, as the proxies do."""
    proxies: list[Tensor]

    def __init__(self, factory: Factory) -> None:
        self.factory = factory

    def __repr__(self) -> str:
        return f"ForeignInner({getattr(self.factory, '__qualname__', self.factory)!s})"

    def for_group(self, params: list[Tensor]) -> "ForeignInner":
        """Return a new ForeignInner for one parameter group; the two share no state."""
        bound = ForeignInner(self.factory)
        bound.proxies = [
            torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)).requires_grad_()
            for p in params
        ]
        bound.optimizer = self.factory(bound.proxies)
        _refuse(bound.optimizer)
        _set_unit_lr(bound.optimizer)
        _refuse_if_it_reads_weights(self.factory, bound.proxies[0].device)
        return bound

    @torch.no_grad()
    def propose(
        self, indices: list[int], grads: list[Tensor], skip_nonfinite: bool
    ) -> list[Tensor]:
        """Return g̃ of the group's parameters at ``indices``, in the dtype of the proxies.

        A tensor whose gradient is not finite gets zero, and its foreign state does not change.
        """
        if any(self.proxies[i].device != g.device for i, g in zip(indices, grads, strict=True)):
            self._move([g.device for g in grads], indices)
        proxies = [self.proxies[i] for i in indices]
        finite = [True] * len(grads)
        if skip_nonfinite:
            norms = torch._foreach_norm(
                [g.to(p.dtype) for g, p in zip(grads, proxies, strict=True)]
            )
            finite = torch.stack([n.isfinite() for n in norms]).tolist()
        for proxy, grad, ok in zip(proxies, grads, finite, strict=True):
            proxy.grad = grad.to(proxy.dtype, copy=True) if ok else None
        if any(finite):
            _step_without_hooks(self.optimizer)
        precond = [-p for p in proxies]
        for proxy in proxies:
            proxy.zero_()
            proxy.grad = None
        return precond

    def _move(self, devices: list[torch.device], indices: list[int]) -> None:
        if self.optimizer.state:
            raise RuntimeError("the parameters moved to another device after the first step")
        for i, device in zip(indices, devices, strict=True):
            self.proxies[i].data = self.proxies[i].data.to(device)

    def to_spec(self) -> dict[str, Any]:
        """Return the name of the foreign optimizer's class and its whole ``state_dict``."""
        kind = f"{type(self.optimizer).__module__}.{type(self.optimizer).__qualname__}"
        state_dict = self.optimizer.state_dict()
        return {"name": "ForeignInner", "optimizer": kind, "state_dict": state_dict}


class Proposed(Inner):
    """Hands on what a foreign optimizer proposed: state ``precond`` in, g̃ out."""

    @coordinatewise
    def precondition(
        self, grads: list[Tensor], state: StateLists, step: list[Tensor], active: Flags
    ) -> list[Tensor]:
        """Return the proposal."""
        return state["precond"]


def _refuse(optimizer: Optimizer) -> None:
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"inner must build a torch.optim.Optimizer, got {kind}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(f"inner optimizer {kind} needs a closure, which Funnel does not give it")
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise TypeError(f"inner optimizer {kind} needs sparse gradients, which no proxy has")
    for group in optimizer.param_groups:
        # The key is "weight_decay", "weight_decay_rate" or the like. A flag such as Adam's
        # decoupled_weight_decay does nothing by itself.
        for key, value in group.items():
            if "weight_decay" in key and not isinstance(value, bool) and value:
                raise ValueError(
                    f"inner optimizer {kind} has {key}={value!r}: decay inside the inner optimizer "
                    "would enter the meta-gradients; set it to 0 and pass Funnel(weight_decay=…)"
                )
        if group.get("maximize"):
            raise ValueError(
                f"inner optimizer {kind} has maximize=True: pass Funnel(maximize=True)"
            )


def _set_unit_lr(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        lr = group.get("lr", 1.0)
        group["lr"] = torch.ones_like(lr) if isinstance(lr, Tensor) else 1.0


@torch.no_grad()
def _refuse_if_it_reads_weights(factory: Factory, device: torch.device) -> None:
    """Compare three steps from a weight of 1 with three from a proxy that starts at 0 each time."""
    grad = torch.tensor([[1.0, -2.0], [3.0, -0.5]], dtype=torch.float64, device=device)
    weight, proxy = torch.ones_like(grad).requires_grad_(), torch.zeros_like(grad).requires_grad_()
    optimizers = [factory([weight]), factory([proxy])]
    for optimizer in optimizers:
        _set_unit_lr(optimizer)
    for t in range(1, 4):
        before = weight.clone()
        for optimizer, w in zip(optimizers, (weight, proxy), strict=True):
            w.grad = grad / t
            _step_without_hooks(optimizer)
        if not torch.allclose(weight - before, proxy, rtol=1e-6, atol=1e-9):
            kind = type(optimizers[0]).__name__
            raise TypeError(f"inner optimizer {kind} reads the weights, which Funnel hides from it")
        proxy.zero_()


def _step_without_hooks(optimizer: Optimizer) -> None:
    """Bypass torch's wrapper, so that global step hooks run once: for Funnel."""
    step = type(optimizer).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    step(optimizer)


def bind_inner(inner: Any, params: list[Tensor]) -> Inner | ForeignInner:
    """Return the inner optimizer of one group, from what the user passed as ``inner``."""
    if isinstance(inner, type) and issubclass(inner, Inner):
        inner = inner()
    if isinstance(inner, Inner):
        return inner
    foreign = inner if isinstance(inner, ForeignInner) else ForeignInner(inner)
    return foreign.for_group(params)


def load_inner(spec: dict[str, Any], mine: Inner | ForeignInner) -> Inner | ForeignInner:
    """Return ``mine`` with the hyperparameters or, if it is foreign, the state of ``spec``.

    Both are of one kind. Tensors come back bit for bit.
    """
    if isinstance(mine, ForeignInner):
        load_verbatim(mine.optimizer, mine.optimizer.load_state_dict, spec["state_dict"])
        return mine
    return replace(mine, **{key: value for key, value in spec.items() if key != "name"})
