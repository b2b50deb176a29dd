"""The deviation of a mixture's errors, from a slow and a quick running mean of their squares.

A mean of the last 300 errors is exact while errors keep their size, and for a thousand examples
far too large once they are a tenth of it. So each of two means of squares v_k, of the last 300 and
of the last 30 errors, is judged as an expert is, by the score of a normal distribution of its
variance: l_k = ½ Σ (log v_k + e² / v_k), where e² counts up to 9 v_k. With the weight w of the
quick one, which follows their scores by Fixed Share (`funnel.pool.mixing`),

    σ = exp(½ ((1 - w) log v_slow + w log v_quick)).

A wild error moves no mean further than one of three deviations. As that would also let a mean grow
no more than nine times in a batch, however large, deviations are taken from the errors of the batch
itself where most of them are larger (`reach`): by then it is no longer one error that is wild.

The geometric mean lets a mean that is far off count by its logarithm: in an arithmetic one, the
little weight that sharing leaves it would widen σ for good.
"""

import torch
from torch import Tensor

QUICK, TRUST = "quick", "trust"
"""Names of the quick mean of squares, and of its weight."""
MEMORY = 30.0
"""Examples that the quick mean remembers."""
SHARE = 1e-3
"""Share of the weight that is redistributed per example."""
HUBER = 3.0
"""Deviations beyond which an error counts no more."""
SOME = 9
"""Errors whose median a wild one does not move far."""
MEDIAN = 0.6745
"""Median error of a normal distribution, in its deviations."""
JUMP = 6.0
"""Growth of a unit from which deviations are blank again."""
EDGE = 1e-6
"""Least distance of the weight from 0 and 1."""


def reach(errors: Tensor, variance: Tensor, follows_jumps: bool) -> Tensor:
    """Return the size beyond which an error counts no more in a running mean of squares: HUBER
    deviations.

    Args:
        errors: of a batch, [n].
        variance: the running mean before it; the result has its shape.
        follows_jumps: whether deviations are those of the batch where these are larger. They are
            taken from its median error, as of a normal distribution, and from SOME errors on.
    """
    found = variance.sqrt()
    if follows_jumps and len(errors) >= SOME:
        middle = errors.abs().sort().values[(len(errors) - 1) // 2]
        found = torch.maximum(found, middle / MEDIAN)
    return HUBER * found


def jumped(ratio: Tensor) -> Tensor:
    """Return whether a unit has become so much larger that errors of the old one say nothing about
    those to come, bool, 0-dim. Numbers that were all alike have nearly no unit.

    Args:
        ratio: of the old unit to the new one, 0-dim.
    """
    return ratio < 1.0 / JUMP


def fresh(like: Tensor) -> dict[str, Tensor]:
    """Return the quick mean and its weight before the first batch, by name.

    Args:
        like: the slow mean, fp32, of any shape.
    """
    return {QUICK: like.clone(), TRUST: torch.full_like(like, 0.5)}


def deviation(slow: Tensor, quick: Tensor, trust: Tensor) -> Tensor:
    """Return σ, in the shape of the means."""
    return (0.5 * torch.lerp(slow.log(), quick.log(), trust)).exp()


def followed(
    slow: Tensor, quick: Tensor, trust: Tensor, squares: tuple[Tensor, Tensor],
    n: Tensor | float, seen: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the quick mean and its weight after a batch.

    Args:
        slow: the slow mean before it, as are the next two.
        quick: the quick mean.
        trust: its weight.
        squares: mean squared errors of the batch, up to 9 times the slow mean, and the quick one.
        n: number of examples, or the sum of their weights.
        seen: the examples before, 0-dim.
    """
    slow_loss, quick_loss = (
        0.5 * n * (variance.log() + square / variance)
        for variance, square in zip((slow, quick), squares, strict=True)
    )
    odds = torch.logit(trust, eps=EDGE) + slow_loss - quick_loss
    dealt = 1.0 - (1.0 - SHARE) ** n
    rate = n / (seen.clamp(max=MEMORY) + n).clamp(min=1.0)
    return quick.lerp(squares[1], rate), (1.0 - dealt) * odds.sigmoid() + 0.5 * dealt
