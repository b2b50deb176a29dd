"""SGD whose learning rate descends its own gradient.

A. G. Baydin, R. Cornish, D. Martínez Rubio, M. Schmidt, F. Wood, 'Online learning rate adaptation
with hypergradient descent' (2018), algorithm 4 (SGD-HD), the additive rule.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class HypergradientSGD(Optimizer):
    """α ← α + β ⟨g, g'⟩, then w ← w - α g, where g' is the gradient of the step before.

    Args:
        parameters: parameters of the model, all with one learning rate.
        lr: initial α.
        hyper_lr: β; its unit is that of α over a squared gradient.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, hyper_lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "hyper_lr": hyper_lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            learned = [p for p in group["params"] if p.grad is not None]
            for p in learned:
                if "before" in (state := self.state[p]):
                    group["lr"] += group["hyper_lr"] * float((p.grad * state["before"]).sum())
            for p in learned:
                self.state[p]["before"] = p.grad.clone()
                p.sub_(p.grad, alpha=group["lr"])
