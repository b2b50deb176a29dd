"""Reports on one tensor's step size, as device tensors; nothing is read on the host."""

import math
from typing import TypedDict

import torch
from torch import Tensor

from funnel.tensorlists import stacked_mean

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SAMPLE = 65_536


class TensorTelemetry(TypedDict):
    """Report on one parameter tensor; floating entries have the dtype of the optimizer state."""

    step: Tensor
    """Steps applied, int64, 0-dim; for a table, the most visits of a row."""
    nonfinite_steps: Tensor
    """Steps skipped because the gradient was not finite, int64, 0-dim."""
    scale: Tensor
    """s, 0-dim."""
    gain_quantiles: Tensor
    """Quantiles 0, .05, .25, .5, .75, .95, 1 of p, shape [7]."""
    gain_at_lower_bound: Tensor
    """Share of the coordinates with p at its lower bound, 0-dim, in [0, 1]."""
    gain_at_upper_bound: Tensor
    """Share of the coordinates with p at its upper bound, 0-dim, in [0, 1]."""
    alignment: Tensor
    """cos(g, ν) of the last step, ν from before it, as in eq. (12), 0-dim, in [-1, 1]."""
    gradient_norm: Tensor
    """‖g‖₂ of the last step, 0-dim; it may be NaN or inf."""
    update_norm: Tensor
    """‖s ν‖₂, the length of eq. (3)'s step (without Nesterov's look-ahead), 0-dim.

    For a table, it is that of the rows of the last step, 0 if there was none since start or load.
    """


def describe(
    state: dict[str, Tensor],
    log_bounds: tuple[float, float],
    alignment: Tensor | None,
    gradient_norm: Tensor | None,
    rows: Tensor | None = None,
) -> TensorTelemetry:
    """Summarize one tensor's state.

    For a table (`funnel.rows`), gains are those of the rows visited so far, and the step is that of
    the row with most visits.

    Quantiles are exact up to 65,536 coordinates. For a larger tensor, the lowest and the highest
    are exact; the others come from a fixed sample of 65,536 coordinates spread evenly over it.

    Args:
        state: Funnel's state of the tensor.
        log_bounds: logarithms of the gain bounds.
        alignment: cosine of the last step, 0-dim; None (no step since start or load) is
            reported as 0.
        gradient_norm: norm in the last step, 0-dim; None is reported as 0.
        rows: the rows of a table that the last step touched, int64 [n]; None means all.
    """
    log_gain, velocity, scale = state["log_gain"], state["velocity"], state["log_scale"].exp()
    zero = torch.zeros_like(scale)
    if state["step"].dim():
        log_gain = log_gain[state["step"].flatten() > 0]
        if rows is not None:
            velocity = velocity.index_select(0, rows)
        elif gradient_norm is None:
            velocity = velocity[:0]
    return {
        "step": state["step"].max().clone(),
        "nonfinite_steps": state["nonfinite"].clone(),
        "scale": scale,
        "gain_quantiles": gain_quantiles(log_gain),
        "gain_at_lower_bound": _share(log_gain <= log_bounds[0], scale.dtype),
        "gain_at_upper_bound": _share(log_gain >= log_bounds[1], scale.dtype),
        "alignment": zero if alignment is None else alignment.clone(),
        "gradient_norm": zero if gradient_norm is None else gradient_norm.clone(),
        "update_norm": scale * torch.linalg.vector_norm(velocity),
    }


def describe_stacked(
    state: dict[str, Tensor],
    log_bounds: tuple[float, float],
    alignment: Tensor,
    gradient_norm: Tensor,
    weights: Tensor,
) -> TensorTelemetry:
    """Summarize one tensor of K experts as if it belonged to one model.

    Scale and gains are weighted geometric means over the experts, and the quantiles are taken of
    these gains. Shares at the bounds, alignment and norms are weighted means. ``step`` is the
    highest of any expert, ``nonfinite_steps`` the sum.

    Args:
        state: Funnel's state of the tensor, [K, …].
        log_bounds: logarithms of the gain bounds.
        alignment: cosines of the last step, K elements.
        gradient_norm: norms in the last step, K elements; one that is not finite counts as 0.
        weights: weights of the experts, [K], summing to 1.
    """
    log_gain, log_scale = state["log_gain"], state["log_scale"].flatten()
    each = state["velocity"]
    velocity = torch.linalg.vector_norm(each.reshape(len(each), -1), dim=1)
    mean = {
        "step": state["step"].max(),
        "nonfinite": state["nonfinite"].sum(),
        "log_gain": stacked_mean(log_gain, weights),
        "log_scale": weights @ log_scale,
        "velocity": velocity,
    }
    norms = gradient_norm.flatten().nan_to_num(nan=0.0, posinf=0.0)
    report = describe(mean, log_bounds, weights @ alignment.flatten(), weights @ norms)
    report["gain_at_lower_bound"] = weights @ _shares(log_gain <= log_bounds[0], weights.dtype)
    report["gain_at_upper_bound"] = weights @ _shares(log_gain >= log_bounds[1], weights.dtype)
    report["update_norm"] = weights @ (log_scale.exp() * velocity)
    return report


def gain_quantiles(log_gain: Tensor) -> Tensor:
    """Return the quantiles of p = exp(``log_gain``), shape [7]; NaN for an empty tensor."""
    flat = log_gain.flatten()
    if flat.numel() == 0:
        return flat.new_full((len(QUANTILES),), math.nan)
    levels = torch.tensor(QUANTILES, dtype=flat.dtype, device=flat.device)
    quantiles = torch.quantile(_sample(flat).exp(), levels)
    if flat.numel() > SAMPLE:
        low, high = torch.aminmax(flat)
        quantiles[0], quantiles[-1] = low.exp(), high.exp()
    return quantiles


def _sample(flat: Tensor) -> Tensor:
    """Return all elements, or SAMPLE distinct ones at a stride of the golden ratio.

    A plain stride would stay in one column of a matrix whose width divides it.
    """
    n = flat.numel()
    if n <= SAMPLE:
        return flat
    stride = int(n * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, n) != 1:
        stride += 1
    return flat[torch.arange(SAMPLE, device=flat.device) * stride % n]


def _shares(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.stack([_share(own, dtype) for own in mask])


def _share(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return mask.to(dtype).mean() if mask.numel() else mask.new_zeros((), dtype=dtype)
