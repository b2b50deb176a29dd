"""The rows of a table that a sparse gradient touches, in compact tensors that hold no others.

A table is a parameter that has had a sparse gradient, as ``nn.Embedding(sparse=True)`` gives it. A
step of it gathers the touched rows, steps these as a dense tensor, and writes them back. It costs
in proportion to the touched rows, however many others there are, and it leaves those as they are.

    >>> table = torch.zeros(5, 2)
    >>> compact = Compact([torch.tensor([1, 4])])
    >>> [few] = compact.gather([table])
    >>> _ = few.add_(1.0)
    >>> compact.scatter()
    >>> table[:, 0]
    tensor([0., 1., 0., 0., 1.])
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Touched(NamedTuple):
    """A gradient without the rows that it does not touch."""

    rows: Tensor | None
    """The n touched rows, ascending and different, int64 [n]; None for a dense gradient."""
    grad: Tensor
    """[n, …]; a dense gradient as it is."""


def is_empty(grad: Tensor) -> bool:
    """Return True if a gradient is sparse and touches no row."""
    return grad.is_sparse and not grad._nnz()


def check_rows(name: str | int, grad: Tensor) -> None:
    """Raise RuntimeError, with the parameter's name, unless a sparse gradient is one of rows."""
    if grad.is_sparse and grad.sparse_dim() == 1:
        return
    kind = f"{grad.sparse_dim()} sparse dimensions" if grad.is_sparse else f"layout {grad.layout}"
    raise RuntimeError(
        f"parameter {name!r} has a gradient of {kind}: Funnel takes dense gradients, and sparse "
        "ones of whole rows, as nn.Embedding(sparse=True) and nn.EmbeddingBag(sparse=True) give "
        "them"
    )


def touch(grad: Tensor, dtype: torch.dtype) -> Touched:
    """Return the rows of a gradient, and the sum of each row's entries in ``dtype``.

    Sums run in the order of the entries and without atomics: they are the same again, and on a CPU
    those that a dense ``nn.Embedding`` computes. On a GPU this waits for the device.
    """
    if not grad.is_sparse:
        return Touched(None, grad)
    entries, values = grad._indices()[0], grad._values().to(dtype)
    if grad.is_coalesced():
        return Touched(entries, values.contiguous())
    # Tensor.coalesce adds in the order of an unstable sort, which varies with the processor.
    ordered, order = entries.sort(stable=True)
    values = values.index_select(0, order)
    rows, lengths = torch.unique_consecutive(ordered, return_counts=True)
    if len(rows) < len(entries):
        values = torch.segment_reduce(values, "sum", lengths=lengths, axis=0, unsafe=True)
    return Touched(rows, values)


def visits_of_rows(step: Tensor, table: Tensor) -> Tensor:
    """Return the number of visits of each row, int64 [rows, 1, …], with the table's dimensions.

    Args:
        step: the same, or the steps of a tensor that had dense gradients only, 0-dim: each of them
            visited every row.
        table: the parameter.
    """
    return step if step.dim() else step.repeat(len(table), *[1] * (table.dim() - 1))


class Compact:
    """Copies of the touched rows of some tensors, and their way back.

    Args:
        rows: the touched rows of each parameter, int64 [n]; None takes the whole tensor, uncopied.
    """

    def __init__(self, rows: list[Tensor | None]) -> None:
        self._rows = rows
        self._is_dense = all(r is None for r in rows)
        self._copies: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def gather(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the rows of one tensor of each parameter; a 0-dim tensor is that of all rows."""
        if self._is_dense:
            return tensors
        copies = [
            t if rows is None or not t.dim() else t.index_select(0, rows)
            for t, rows in zip(tensors, self._rows, strict=True)
        ]
        self._copies += zip(tensors, copies, self._rows, strict=True)
        return copies

    def scatter(self) -> None:
        """Write all rows that were gathered back to their tensors."""
        for tensor, copy, rows in self._copies:
            if rows is not None and copy is not tensor:
                tensor.index_copy_(0, rows, copy)
