"""Tensors of older checkpoint formats, as today's states name and shape them.

In format 1 a learner with one optimizer, Funnel or a plain one, was not a pool. Its tensors had no
leading expert dimension, the keys of its inner optimizer's state named no run, and it had no expert
weights. Everything that was learned stays as it is, bit for bit.

Until format 2 the statistics of the inputs were an exponentially weighted mean and variance.

Until format 4 the scores were those of accuracy and loss alone, of the last 1,000 examples.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from funnel.pool.mixing import FixedShare
from funnel.pool.renewal import Renewal
from service.fold.scoring.classification import LABEL, LOSS, PREDICTED, RING
from service.fold.scoring.classification import UNKNOWN as UNKNOWN_CLASS
from service.fold.spec import Hyperparameters, Shadow, Spec
from service.fold.standardizer import UNKNOWN, WINDOW

SHADOW = "shadow."
STANDARDIZER = "standardizer."
SCORES = "scores."
NORMAL = 0.53
"""Geometric mean of |x| for a standard normal x: exp(E log |x|)."""


def from_format_1(
    tensors: Mapping[str, Tensor], spec: Spec, hyperparameters: Hyperparameters
) -> dict[str, Tensor]:
    """Return the tensors of a state that was saved in format 1 under today's names and shapes.

    Args:
        tensors: all of them by name, those of shadows prefixed by ``shadow.NAME.``.
        spec: of the served model.
        hyperparameters: they name the shadows.
    """
    own = {k: v for k, v in tensors.items() if not k.startswith(SHADOW)}
    found = own if spec.optimizer == "pool" else _pool_of_one(own)
    for shadow in map(Shadow.parse, hyperparameters.shadow):
        prefix = f"{SHADOW}{shadow.name}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        converted = own if shadow.optimizer == "pool" else _pool_of_one(own)
        found |= {prefix + k: v for k, v in converted.items()}
    return found


def from_format_2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state that was saved in format 2 under today's names and shapes.

    Inputs keep the mean and the standard deviation that they had, and new examples move both as
    they would have. The magnitude starts as that of normal inputs: where it is wrong, the feature
    starts again once that is evident.

    Args:
        tensors: all of them by name.
    """
    old = {k.removeprefix(STANDARDIZER): v for k, v in tensors.items() if k in _STATISTICS}
    mean, deviation = old["mean"], old["variance"].sqrt()
    count = old["count"].expand_as(mean)
    magnitude = torch.where((count > 0) & (deviation > 0), NORMAL * deviation, UNKNOWN)
    found = {k: v for k, v in tensors.items() if k not in _STATISTICS}
    none = torch.zeros_like(mean)
    statistics = torch.stack([mean, deviation, count, magnitude, none, none])
    found[f"{STANDARDIZER}statistics"] = statistics
    found[f"{STANDARDIZER}recent"] = mean.repeat(WINDOW, 1)
    return found


def from_format_4(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state that was saved in format 4 or 3 under today's names and shapes.

    Accuracy and loss go on. Whatever else is measured begins now, and so do the floors: their
    tensors are not among those that are returned.

    Args:
        tensors: all of them by name.
    """
    found = dict(tensors)
    for name in tensors:
        if not name.endswith(f"{SCORES}outcomes"):
            continue
        start = name.removesuffix("outcomes")
        outcomes, losses = found.pop(name), found.pop(f"{start}losses")
        scored, correct = found[f"{start}scored"], found[f"{start}correct"]
        ring = torch.full((1, RING, 5), torch.nan)
        newest = torch.arange(max(0, int(scored) - len(outcomes)), int(scored))
        old = newest % len(outcomes)
        label, is_right = outcomes[old] // 2, outcomes[old] % 2 == 1
        at = newest % RING
        ring[0, at, LOSS], ring[0, at, LABEL] = losses[old], label.float()
        ring[0, at, PREDICTED] = torch.where(is_right, label, UNKNOWN_CLASS).float()
        sums = torch.stack([found.pop(f"{start}loss_sum"), torch.zeros((), dtype=torch.float64)])
        found |= {
            f"{start}settled": scored.clone(),
            f"{start}correct": correct[None],
            f"{start}sums": sums[None],
            f"{start}ring": ring,
        }
    return found


_STATISTICS = {STANDARDIZER + name for name in ("count", "mean", "variance")}


def _pool_of_one(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    dims = {
        name.removeprefix("model."): tensor.dim()
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "model" or name == "norm_level":
            found[name] = tensor[None]
        elif kind == "optimizer":
            parameter = max((p for p in dims if rest.startswith(f"{p}.")), key=len)
            field = rest.removeprefix(f"{parameter}.")
            if tensor.dim() < dims[parameter]:  # one number a tensor
                tensor = tensor.view([1] * dims[parameter])
            field = field.replace("inner.", "inner.0.", 1) if "inner." in field else field
            found[f"optimizer.{parameter}.{field}"] = tensor[None]
        else:
            found[name] = tensor
    mixing = FixedShare(1, torch.device("cpu")).tensors()
    found |= {f"mixing.{name}": tensor for name, tensor in mixing.items()}
    return found | {"excess": Renewal(torch.tensor([False])).excess}
