"""A forest: regression trees of one depth in tensors, whose leaves add to the logits of classes."""

import torch
from torch import Tensor
from torch.nn import functional

DEPTH = 5
NODES, LEAVES = 2**DEPTH - 1, 2**DEPTH


class Forest:
    """A ring of trees; those that were never grown add nothing.

    Node k has the children 2k + 1 and 2k + 2. An example goes to the second one if its number is
    above the threshold; a missing number is infinite.

    Args:
        trees: most trees that it holds, M.
        classes: C.
        device: where they are.
    """

    def __init__(self, trees: int, classes: int, device: torch.device) -> None:
        self.features = torch.zeros(trees, NODES, dtype=torch.int64, device=device)
        """Number that each node looks at, int64 [M, NODES]."""
        self.thresholds = torch.full((trees, NODES), torch.inf, device=device)
        """fp32 [M, NODES]; infinite where a node has no split."""
        self.leaves = torch.zeros(trees, LEAVES, classes, device=device)
        """fp32 [M, LEAVES, C]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {name: getattr(self, name) for name in ("features", "thresholds", "leaves")}

    def logits(self, rows: Tensor, grown: int) -> Tensor:
        """Return the sums of the leaves that examples fall into, fp32 [n, C].

        Args:
            rows: fp32 [n, D].
            grown: trees that have been grown; older ones of them are no longer there.
        """
        return forest_logits(self.features, self.thresholds, self.leaves, rows, grown)


def forest_logits(
    features: Tensor, thresholds: Tensor, leaves: Tensor, rows: Tensor, grown: int
) -> Tensor:
    """Return the sums of the leaves of trees, fp32 [n, C]; arguments as in `Forest`."""
    trees = min(grown, len(leaves))
    if not trees:
        return rows.new_zeros(len(rows), leaves.shape[2])
    places = leaf_of(features[:trees], thresholds[:trees], rows)
    places.add_(LEAVES * torch.arange(trees, device=rows.device)[:, None])
    flat = leaves[:trees].flatten(0, 1)
    return functional.embedding_bag(places.t().contiguous(), flat, mode="sum")


def leaf_of(features: Tensor, thresholds: Tensor, rows: Tensor) -> Tensor:
    """Return the leaf of each tree and example, int64 [T, n].

    Args:
        features: int64 [T, NODES].
        thresholds: fp32 [T, NODES].
        rows: fp32 [n, D].
    """
    width = rows.shape[1]
    flat = rows.flatten()
    first = width * torch.arange(len(rows), device=rows.device)
    node = torch.zeros(len(features), len(rows), dtype=torch.int64, device=rows.device)
    for _ in range(DEPTH):
        found = flat.take(features.gather(1, node).add_(first))
        is_above = found > thresholds.gather(1, node)
        node = node.mul_(2).add_(1).add_(is_above)
    return node.sub_(NODES)
