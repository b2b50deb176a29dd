"""Pieces of tensors, in runs whose working set fits the caches of the cores.

An eager step applies some twenty operators to each coordinate. Over a whole large tensor, each of
them would read and write memory; over one piece after another, only the first and the last do.

    >>> import torch
    >>> w, g = [torch.zeros(5)], [torch.arange(5.0)]
    >>> blocks = Blocks([w, g], size=2)
    >>> for piece, own in zip(blocks.cut(w), blocks.cut(g), strict=True):
    ...     _ = piece.add_(own)
    >>> w
    [tensor([0., 1., 2., 3., 4.])]
"""

from collections.abc import Sequence

from torch import Tensor


class Blocks:
    """A partition of lists of tensors.

    Args:
        lists: each has an entry for every tensor; entries for one tensor have one shape. A tensor
            is cut if all its entries are contiguous.
        size: most elements of a piece that was cut off. A run of several pieces has fewer than
            twice as many, so it holds one whole piece of a cut tensor at most.
    """

    def __init__(self, lists: Sequence[list[Tensor]], size: int) -> None:
        self._size = size
        self._counts: list[int] = []
        self.runs: list[slice] = []
        """Which pieces to handle together."""
        sizes: list[int] = []
        for own in zip(*lists, strict=True):
            n = own[0].numel()
            if n > size and all(t.is_contiguous() for t in own):
                whole, rest = divmod(n, size)
                found = [size] * whole + [rest] * (rest > 0)
            else:
                found = [n]
            self._counts.append(len(found))
            sizes += found
        start = total = 0
        for number, n in enumerate(sizes):
            if total and total + n >= 2 * size:
                self.runs.append(slice(start, number))
                start, total = number, 0
            total += n
        self.runs.append(slice(start, len(sizes)))

    def cut(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the pieces of all tensors; they are views."""
        pieces: list[Tensor] = []
        for tensor, count in zip(tensors, self._counts, strict=True):
            pieces += tensor.view(-1).split(self._size) if count > 1 else [tensor]
        return pieces

    def spread(self, values: list[Tensor]) -> list[Tensor]:
        """Return for each piece the value of its tensor."""
        each = zip(values, self._counts, strict=True)
        return [value for value, count in each for _ in range(count)]
