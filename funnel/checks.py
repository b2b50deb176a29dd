"""Checks of constructor arguments; each error names the argument, its value and its range."""

import math
from typing import Any

from torch import Tensor


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, below: float = math.inf
) -> None:
    """Raise unless ``value`` is a finite real number with low ≤ value ≤ high and value < below.

    Raises:
        TypeError: it is not a number (a bool is not one either).
        ValueError: it is not finite, or outside the range.
    """
    span = f"[{low:g}, {high:g}]" if high < math.inf else f"[{low:g}, {below:g})"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number in {span}, got {value!r}")
    if not (math.isfinite(value) and low <= value <= high and value < below):
        raise ValueError(f"{name} must be in {span}, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise unless ``value`` is a finite real number above 0.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite, or not above 0.
    """
    check_number(name, value, low=0.0)
    if value == 0.0:
        raise ValueError(f"{name} must be above 0; otherwise a gradient of 0 is divided by 0")


def check_rate(name: str, value: Any) -> None:
    """Raise unless ``value`` is a number ≥ 0 or a 0-dim floating tensor (it is not read)."""
    if not isinstance(value, Tensor):
        check_number(name, value, low=0.0)
    elif value.dim() != 0 or not value.is_floating_point():
        raise ValueError(
            f"{name} as a tensor must be 0-dim and floating, "
            f"got shape {tuple(value.shape)} and {value.dtype}"
        )


def check_flag(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_bounds(name: str, value: Any) -> None:
    """Raise unless ``value`` is (low, high) with 0 ≤ low ≤ 1 ≤ high; p and s start at 1.

    Raises:
        TypeError: it is not a pair of numbers.
        ValueError: the numbers are out of order, or 1 is outside.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (low, high), got {value!r}")
    check_number(f"{name}[0]", value[0], low=0.0, high=1.0)
    check_number(f"{name}[1]", value[1], low=1.0)


def check_group(group: dict[str, Any]) -> None:
    """Raise unless every hyperparameter of a parameter group is in its range.

    Raises:
        TypeError, ValueError: one is not; the message names it, its value and the range.
    """
    inner = group["inner"]
    if not (callable(inner) or hasattr(inner, "to_spec")):
        raise TypeError(
            "inner must be one of funnel's inner optimizers, e.g. Adagrad(), or a callable that "
            f"builds a torch.optim optimizer for given tensors, got {inner!r}"
        )
    check_rate("lr", group["lr"])
    check_number("momentum", group["momentum"], low=0.0, below=1.0)
    check_number("beta", group["beta"], low=0.0, below=1.0)
    check_number("gain_lr", group["gain_lr"], low=0.0)
    check_number("scale_lr", group["scale_lr"], low=0.0)
    check_number("weight_decay", group["weight_decay"], low=0.0)
    for flag in ("nesterov", "normalize_gain", "normalize_scale", "maximize", "skip_nonfinite"):
        check_flag(flag, group[flag])
    if group["nesterov"] and not group["momentum"]:
        raise ValueError(f"nesterov needs momentum in (0, 1), got momentum={group['momentum']!r}")
    check_bounds("gain_bounds", group["gain_bounds"])
    check_bounds("scale_bounds", group["scale_bounds"])
