"""Growing one tree of a boosted forest from the examples of a window.

Level by level, every node takes the split of the largest gain [J. H. Friedman, 'Greedy function
approximation: a gradient boosting machine', 2001; T. Chen, C. Guestrin, 'XGBoost', 2016, eq. 7],

    gain = G_l² / (H_l + λ) + G_r² / (H_r + λ) - G² / (H + λ),

sought among the quantiles of a random part of the features. Gradients of many classes are projected
on two random directions [L. Iosipoi, A. Vakhrushev, 'SketchBoost', NeurIPS 2022], so that a tree
costs the same for any width and any number of classes; its leaves have all classes. Quantiles of
numbers are projected like classes.

Histograms are sums of integers: their bits depend on no order.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from funnel.compiled import loops
from funnel.families.forests.forest import DEPTH, LEAVES, LOOPS, NODES

BINS = 32
PROJECTIONS = 2
RIDGE = 1.0
"""λ."""
LEAST_HESSIAN = 0.25
"""Least H of a child."""
LEAST_GAIN = 1e-6
LARGEST_LEAF = 2.0
FEATURE_SHARE, FEWEST_FEATURES, MOST_FEATURES = 0.7, 4, 24
"""How many features a tree looks at: a share of them, within bounds."""
UNIT = 1 << 18
"""Largest gradient, and largest Hessian, of an example as an integer: 2^12 of them fit 31 bits."""
SHIFT = 32


class Grown(NamedTuple):
    """A tree."""

    features: Tensor
    """int64 [NODES]."""
    thresholds: Tensor
    """fp32 [NODES]."""
    leaves: Tensor
    """fp32 [LEAVES, C]."""
    gains: Tensor
    """Gain of each node's split, for one example, fp32 [NODES]; 0 where there is none."""


def features_of_tree(usable: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the features that a tree looks at, ascending.

    Args:
        usable: those that there are, int64 [d].
        generator: draws.
    """
    count = min(len(usable), max(FEWEST_FEATURES, int(FEATURE_SHARE * len(usable))), MOST_FEATURES)
    if count == len(usable):
        return usable
    return usable[torch.randperm(len(usable), generator=generator)[:count]].sort().values


def quantiles(columns: Tensor) -> Tensor:
    """Return the quantiles of each column, between which lie the bins, fp32 [D, BINS - 1].

    Args:
        columns: fp32 [D, m].
    """
    ranks = (torch.arange(1, BINS) * columns.shape[1]) // BINS
    numbers = columns + 0.0  # -0 and 0 are equal, so a sort may leave them in any order
    return torch.from_numpy(np.sort(numbers.cpu().numpy(), axis=1)).to(columns.device)[:, ranks]


def bins_of(columns: Tensor, edges: Tensor, slots: Tensor, chosen: Tensor) -> Tensor:
    """Return the bins of numbers, uint8 [k, m]: how many quantiles of the column lie below each.

    Args:
        columns: fp32 [D, slots].
        edges: quantiles of the columns, fp32 [D, BINS - 1].
        slots: of which examples, int64 [m].
        chosen: of which columns, int64 [k].
    """
    if (compiled := loops(LOOPS)) is not None and not columns.is_cuda:
        found = torch.empty(len(chosen), len(slots), dtype=torch.uint8)
        compiled.bin_numbers(*(t.numpy() for t in (columns, slots, chosen, edges, found)))
        return found
    numbers = columns[chosen[:, None], slots]
    return torch.searchsorted(edges[chosen], numbers).byte()


class Slopes(NamedTuple):
    """The derivatives of the loss of m examples that a tree fits."""

    gradient: Tensor
    """Downhill, fp32 [A, m]."""
    curvature: Tensor
    """fp32 [A, m]."""
    projected: Tensor
    """The gradient in the directions in which splits are sought, fp32 [p, m], p of 1 or 2."""
    hessian: Tensor
    """Curvature for the splits, fp32 [m]."""
    rate: float
    """Share of a leaf's Newton step that is taken."""


def projections(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """Return gradients [A, m] in random directions, fp32 [PROJECTIONS, m]."""
    drawn = torch.randn(PROJECTIONS, len(gradient), generator=generator)
    return (drawn / math.sqrt(PROJECTIONS)).to(gradient.device) @ gradient


def grow(bins: Tensor, slopes: Slopes, weights: Tensor, chosen: Tensor, edges: Tensor) -> Grown:
    """Grow a tree that fits the gradient of a loss.

    Args:
        bins: of the features that it looks at, uint8 [k, m], as `bins_of` returns them; m is at
            most 4,096.
        slopes: of the examples.
        weights: of the examples, fp32 [m].
        chosen: features that it looks at, int64 [k].
        edges: quantiles of these features, fp32 [k, BINS - 1].
    """
    gradient, curvature, projected, hessian, rate = slopes
    device, total, outputs = bins.device, weights.sum(), len(gradient)
    features = torch.zeros(NODES, dtype=torch.int64, device=device)
    thresholds, gains = torch.full((2, NODES), math.inf, device=device)
    leaves = torch.zeros(LEAVES, outputs, device=device)
    tree = Grown(features, thresholds, leaves, gains)
    if (compiled := loops(LOOPS)) is not None and not bins.is_cuda:
        given = (gradient, curvature, projected, hessian, bins, chosen, edges)
        arrays = (tensor.contiguous().numpy() for tensor in given)
        compiled.grow(*arrays, float(total), rate, *(tensor.numpy() for tensor in tree))
        return tree
    node = _split(bins.long(), projected, hessian, chosen, edges, total, tree)
    g_unit, h_unit = _unit(gradient), _unit(curvature)
    sums = torch.zeros(2, outputs, LEAVES, dtype=torch.int64, device=device)
    whole = torch.stack([gradient * g_unit, curvature * h_unit]).round_().long()
    slope, curve = sums.index_add_(2, node, whole)
    step = (slope / g_unit) / (curve / h_unit + RIDGE)
    leaves.copy_((step * rate).clamp_(-LARGEST_LEAF, LARGEST_LEAF).t())
    return tree


def _split(
    bins: Tensor,
    projected: Tensor,
    hessian: Tensor,
    chosen: Tensor,
    edges: Tensor,
    total: Tensor,
    tree: Grown,
) -> Tensor:
    """Write the nodes of a tree; return the leaf of each example, int64 [m].

    Args:
        bins: int64 [k, m].
        projected: slopes, fp32 [projections, m].
        hessian: fp32 [m].
        chosen: int64 [k].
        edges: fp32 [k, BINS - 1].
        total: weight of all examples, 0-dim.
        tree: its nodes are written.
    """
    k, m = bins.shape
    h_unit, g_unit = _unit(hessian), _unit(projected)
    first, *rest = (projected * g_unit).round_().long()
    packed = ((hessian * h_unit).round_().long() << SHIFT) + first
    device = bins.device
    columns = BINS * torch.arange(k, device=device)[:, None] + bins
    spread = [part.expand(k, -1).flatten() for part in (packed, *rest)]
    node = torch.zeros(m, dtype=torch.int64, device=device)
    for level in range(DEPTH):
        nodes = 2**level
        cells = (node * (k * BINS) + columns).flatten()

        def counted(values: Tensor, cells: Tensor = cells, nodes: int = nodes) -> Tensor:
            empty = torch.zeros(nodes * k * BINS, dtype=torch.int64, device=device)
            return empty.scatter_add_(0, cells, values).view(nodes, k, BINS).cumsum(dim=2)

        both, *others = map(counted, spread)
        sums = (both + (1 << (SHIFT - 1))) >> SHIFT
        slopes = [both - (sums << SHIFT), *others]
        left_h = sums[..., :-1] / h_unit
        all_h = sums[..., -1:] / h_unit
        right_h = all_h - left_h
        gain = torch.zeros_like(left_h)
        for slope in slopes:
            left, whole_g = slope[..., :-1] / g_unit, slope[..., -1:] / g_unit
            gain += left.square() / (left_h + RIDGE)
            gain += (whole_g - left).square() / (right_h + RIDGE)
            gain -= whole_g.square() / (all_h + RIDGE)
        is_small = (left_h < LEAST_HESSIAN) | (right_h < LEAST_HESSIAN)
        won, best = gain.masked_fill_(is_small, -1.0).flatten(1).max(dim=1)
        splits = won > LEAST_GAIN
        feature, code = best // (BINS - 1), best % (BINS - 1)
        at = slice(nodes - 1, 2 * nodes - 1)
        tree.features[at] = torch.where(splits, chosen[feature], 0)
        tree.thresholds[at] = torch.where(splits, edges[feature, code], math.inf)
        tree.gains[at] = torch.where(splits, won / total, 0.0)
        own = bins.gather(0, feature[node][None])[0]
        node = 2 * node + (splits[node] & (own > code[node]))
    return node


def _unit(values: Tensor) -> Tensor:
    """Return the integers that stand for 1, 0-dim."""
    return UNIT / values.abs().amax().clamp(min=1e-30)
