"""Growing one tree of a boosted forest from the examples of a window.

Level by level, every node takes the split of the largest gain [J. H. Friedman, 'Greedy function
approximation: a gradient boosting machine', 2001; T. Chen, C. Guestrin, 'XGBoost', 2016, eq. 7],

    gain = G_l² / (H_l + λ) + G_r² / (H_r + λ) - G² / (H + λ),

sought among the quantiles of a random part of the features. Gradients of many classes are projected
on two random directions [L. Iosipoi, A. Vakhrushev, 'SketchBoost', NeurIPS 2022], so that a tree
costs the same for any width and any number of classes; its leaves have all classes.

Histograms are sums of integers: their bits depend on no order.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from funnel.families.forest import DEPTH, LEAVES, NODES

BINS = 32
PROJECTIONS = 2
RATE = 0.2
"""Share of a leaf's Newton step that is taken."""
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


def quantiles(rows: Tensor) -> Tensor:
    """Return the quantiles of each column, between which lie the bins, fp32 [D, BINS - 1]."""
    ranks = (torch.arange(1, BINS) * len(rows)) // BINS
    return rows.sort(dim=0).values[ranks].t().contiguous()


def bins_of(rows: Tensor, edges: Tensor) -> Tensor:
    """Return the bin of each number, int64 [k, m]: how many quantiles lie below it.

    Args:
        rows: fp32 [m, k].
        edges: quantiles of the columns, fp32 [k, BINS - 1].
    """
    return torch.searchsorted(edges, rows.t().contiguous())


def grow(
    bins: Tensor,
    labels: Tensor,
    weights: Tensor,
    logits: Tensor,
    chosen: Tensor,
    edges: Tensor,
    generator: torch.Generator,
) -> Grown:
    """Grow a tree that fits the gradient of the log loss.

    Args:
        bins: of the features that it looks at, int64 [k, m], as `bins_of` returns them; m is at
            most 4,096.
        labels: int64 [m].
        weights: fp32 [m].
        logits: of the forest so far, fp32 [m, C]; -inf for classes that are closed.
        chosen: features that it looks at, int64 [k].
        edges: quantiles of these features, fp32 [k, BINS - 1].
        generator: draws the projections.
    """
    classes = logits.shape[1]
    probabilities = logits.softmax(dim=1)
    curvature = (1.0 - probabilities).mul_(probabilities).mul_(weights[:, None])
    gradient = probabilities.neg_().mul_(weights[:, None])
    gradient.scatter_add_(1, labels[:, None], weights[:, None])
    if classes == 2:
        projected, hessian = gradient[:, 1:], curvature[:, 1]
    else:
        drawn = torch.randn(classes, PROJECTIONS, generator=generator)
        projected = gradient @ (drawn / math.sqrt(PROJECTIONS)).to(gradient.device)
        hessian = curvature.sum(dim=1) / 2
    hessian = torch.add(hessian, weights, alpha=1e-3)
    node, found = _splits(bins, projected, hessian, chosen, edges, weights.sum())
    is_leaf = (node == torch.arange(LEAVES, device=node.device)[:, None]).float()
    step = (is_leaf @ gradient) / (is_leaf @ curvature + RIDGE)
    leaves = step.mul_(RATE if classes > 2 else RATE / 2).clamp_(-LARGEST_LEAF, LARGEST_LEAF)
    return found._replace(leaves=leaves)


def _splits(
    bins: Tensor, projected: Tensor, hessian: Tensor, chosen: Tensor, edges: Tensor, total: Tensor
) -> tuple[Tensor, Grown]:
    """Return the leaf of each example, int64 [m], and the tree without its leaves."""
    k, m = bins.shape
    device = bins.device
    h_unit, g_unit = _unit(hessian), _unit(projected)
    whole = (hessian * h_unit).round().long()
    parts = (projected * g_unit).round().long()
    packed = (whole << SHIFT) + parts[:, 0]
    others = [parts[:, j].expand(k, -1).flatten() for j in range(1, parts.shape[1])]
    first = packed.expand(k, -1).flatten()
    columns = BINS * torch.arange(k, device=device)[:, None] + bins
    features = torch.zeros(NODES, dtype=torch.int64, device=device)
    thresholds = torch.full((NODES,), math.inf, device=device)
    gains = torch.zeros(NODES, device=device)
    node = torch.zeros(m, dtype=torch.int64, device=device)
    for level in range(DEPTH):
        nodes = 2**level
        cells = (node * (k * BINS) + columns).flatten()

        def counted(values: Tensor, cells: Tensor = cells, nodes: int = nodes) -> Tensor:
            empty = torch.zeros(nodes * k * BINS, dtype=torch.int64, device=device)
            return empty.scatter_add_(0, cells, values).view(nodes, k, BINS).cumsum(dim=2)

        both = counted(first)
        sums = (both + (1 << (SHIFT - 1))) >> SHIFT
        slopes = [both - (sums << SHIFT), *map(counted, others)]
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
        features[at] = torch.where(splits, chosen[feature], 0)
        thresholds[at] = torch.where(splits, edges[feature, code], math.inf)
        gains[at] = torch.where(splits, won / total, 0.0)
        own = bins.gather(0, feature[node][None])[0]
        node = 2 * node + (splits[node] & (own > code[node]))
    return node, Grown(features, thresholds, gains[:0], gains)


def _unit(values: Tensor) -> Tensor:
    """Return the integers that stand for 1, 0-dim."""
    return UNIT / values.abs().amax().clamp(min=1e-30)
