"""A forest: regression trees of one depth in tensors, whose leaves add to outputs: logits of
classes, a number, or its quantiles."""

from typing import NamedTuple

import torch
from torch import Tensor

from funnel.compiled import loops

LOOPS = "funnel.families.kernels"
"""Name of the module of compiled loops."""
DEPTH = 5
NODES, LEAVES = 2**DEPTH - 1, 2**DEPTH


class Tree(NamedTuple):
    """A tree."""

    features: Tensor
    """int64 [NODES]."""
    thresholds: Tensor
    """fp32 [NODES]."""
    leaves: Tensor
    """fp32 [LEAVES, C]."""


class Forest:
    """A ring of trees; those that were never grown add nothing.

    Node k has the children 2k + 1 and 2k + 2. An example goes to the second one if its number is
    above the threshold; a missing number is infinite.

    Args:
        trees: most trees that it holds, M.
        outputs: A.
        device: where they are.
    """

    def __init__(self, trees: int, outputs: int, device: torch.device) -> None:
        self.features = torch.zeros(trees, NODES, dtype=torch.int64, device=device)
        """Number that each node looks at, int64 [M, NODES]."""
        self.thresholds = torch.full((trees, NODES), torch.inf, device=device)
        """fp32 [M, NODES]; infinite where a node has no split."""
        self.leaves = torch.zeros(trees, LEAVES, outputs, device=device)
        """fp32 [M, LEAVES, A]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {name: getattr(self, name) for name in ("features", "thresholds", "leaves")}

    def tree(self, place: int) -> Tree:
        """Return a tree, the tensors themselves."""
        return Tree(self.features[place], self.thresholds[place], self.leaves[place])

    def logits(self, rows: Tensor, grown: int) -> Tensor:
        """Return the sums of the leaves that examples fall into, fp32 [n, A].

        Args:
            rows: fp32 [n, D].
            grown: trees that have been grown; older ones of them are no longer there.
        """
        return forest_logits(self.features, self.thresholds, self.leaves, rows, grown)


def forest_logits(
    features: Tensor, thresholds: Tensor, leaves: Tensor, rows: Tensor, grown: int
) -> Tensor:
    """Return the sums of the leaves of trees, fp32 [n, A]; arguments as in `Forest`.

    Leaves are added in the order of the trees.
    """
    trees = min(grown, len(leaves))
    found = rows.new_zeros(len(rows), leaves.shape[2])
    if (compiled := loops(LOOPS)) is not None and not rows.is_cuda:
        arrays = (tensor.numpy() for tensor in (features, thresholds, leaves))
        compiled.logits(*arrays, trees, rows.contiguous().numpy(), found.numpy())
        return found
    every = torch.arange(len(rows), device=rows.device)
    columns = rows.t().contiguous()
    places = leaf_of(features[:trees], thresholds[:trees], columns, every)
    for own, place in zip(leaves, places, strict=False):
        found += own[place]
    return found


def leaf_of(features: Tensor, thresholds: Tensor, columns: Tensor, slots: Tensor) -> Tensor:
    """Return the leaf of each tree and example, int64 [T, n].

    Args:
        features: int64 [T, NODES].
        thresholds: fp32 [T, NODES].
        columns: the numbers of examples, fp32 [D, slots].
        slots: which of them, int64 [n].
    """
    flat, stride = columns.flatten(), columns.shape[1]
    node = torch.zeros(len(features), len(slots), dtype=torch.int64, device=columns.device)
    for _ in range(DEPTH):
        found = flat.take(features.gather(1, node).mul_(stride).add_(slots))
        is_above = found > thresholds.gather(1, node)
        node = node.mul_(2).add_(1).add_(is_above)
    return node.sub_(NODES)


def replace_tree(
    fitted: Tensor, columns: Tensor, slots: Tensor, old: "Tree | None", new: "Tree"
) -> None:
    """Take the leaves of a tree from the logits of examples, and add those of another, in place.

    Args:
        fitted: the logits, fp32 [slots, C].
        columns: numbers of examples, fp32 [D, slots].
        slots: whose logits change, int64 [n], each once.
        old: the tree that goes; None if none goes.
        new: the tree that takes its place.
    """
    if (compiled := loops(LOOPS)) is not None and not fitted.is_cuda:
        has_old, old = old is not None, old or new
        trees = (tensor.numpy() for tensor in (*old, *new))
        compiled.refit(fitted.numpy(), columns.numpy(), slots.numpy(), has_old, *trees)
        return
    own = fitted[slots]
    for sign, tree in ((-1, old), (1, new)):
        if tree is not None:
            features, thresholds, leaves = tree
            added = leaves[leaf_of(features[None], thresholds[None], columns, slots)[0]]
            own = own + sign * added
    fitted[slots] = own
