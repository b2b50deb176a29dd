"""Inputs of which most are zero, and the products of the first layer with them.

An example names the columns of the first layer that it does not leave at zero. The products are
sums of these columns, and their order is fixed: on a CPU they give the same bits again. They are
those of the same inputs written out (`compacted`), up to rounding.

A GPU would add up such sums by atomics, in any order. There inputs are written out, and go through
products of matrices, which give the same bits again.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_COLUMNS = 64
LEAST_ENTRIES = 4


class Sparse(NamedTuple):
    """n examples with d dense inputs and at most m others each."""

    dense: Tensor
    """The first d columns, fp32 [n, d]."""
    columns: Tensor
    """Columns of the first layer, int64 [n, m]; one that occurs twice counts twice."""
    values: Tensor
    """Their inputs, fp32 [n, m]; 0 where an example has fewer than m."""


Inputs = Tensor | Sparse
"""fp32 [n, features], or the same as `Sparse`."""


def padded(count: int, least: int) -> int:
    """Return the next of ``least`` · 1, 1.5, 2, 3, 4, 6, …, so that shapes recur.

    >>> [padded(count, 64) for count in (0, 64, 65, 97, 129)]
    [64, 64, 96, 128, 192]
    """
    size = least
    while size < count:
        if size * 3 // 2 >= count:
            return size * 3 // 2
        size *= 2
    return size


def arranged(
    dense: Tensor,
    examples: npt.NDArray[np.integer],
    columns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    spare: int,
) -> Sparse:
    """Return inputs from a list of entries; the order of an example's entries does not matter.

    Args:
        dense: fp32 [n, d].
        examples: of each entry, [e], ascending.
        columns: of each entry, [e], from 0 to 2^31.
        values: of each entry, fp32 [e].
        spare: column of the entries of value 0 that fill up an example.
    """
    n = len(dense)
    counts = np.bincount(examples, minlength=n)
    m = padded(int(counts.max(initial=0)), LEAST_ENTRIES)
    places = np.arange(len(examples)) - (np.cumsum(counts) - counts)[examples]
    both = np.full((n, m), spare << 32, dtype=np.int64)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    both[examples, places] = (columns << 32) | bits.astype(np.int64)
    both.sort(axis=1)
    found = (both & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
    return Sparse(dense, torch.from_numpy(both >> 32), torch.from_numpy(found))


def inputs_of(
    dense: Tensor,
    examples: npt.NDArray[np.integer],
    columns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    features: int,
    spare: int,
) -> Inputs:
    """Return inputs from a list of entries: sparse on a CPU, and written out on a GPU.

    Args:
        dense: fp32 [n, d], which decides on the device.
        examples, columns, values: of each entry, as for `arranged`; columns are d or more.
        features: width of the first layer.
        spare: as for `arranged`.
    """
    if dense.device.type == "cpu":
        return arranged(dense, examples, columns, values, spare)
    n, d = dense.shape
    return torch.cat([dense, _written(n, examples, columns - d, values, features - d, dense)], 1)


def _written(
    n: int,
    examples: npt.NDArray[np.integer],
    columns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    width: int,
    like: Tensor,
) -> Tensor:
    """Return entries written out, fp32 [n, width], on the device of another tensor.

    Entries of one column in one example are added on the host, in order of their values. So each
    number is written once, and the order of writing does not matter.
    """
    places = examples.astype(np.int64) * width + columns
    order = np.lexsort((values, places))
    distinct, first = np.unique(places[order], return_index=True)
    summed = np.add.reduceat(values[order], first) if len(first) else values[:0]
    written = like.new_zeros(n * width)
    at = torch.from_numpy(distinct).to(like.device)
    return written.index_put_((at,), torch.from_numpy(summed).to(like.device)).view(n, width)


def compacted(inputs: Sparse, features: int) -> Tensor:
    """Return the inputs written out, fp32 [n, features]; entries of one column are added.

    Args:
        inputs: their columns are below ``features``.
        features: width of the first layer.
    """
    d = inputs.dense.shape[1]
    written = F.pad(inputs.dense, (0, features - d))
    return written.scatter_add_(1, inputs.columns, inputs.values)


def product(weight: Tensor, inputs: Inputs) -> Tensor:
    """Return the outputs of a layer without biases, [out, n].

    Args:
        weight: [out, features].
        inputs: n examples.
    """
    if isinstance(inputs, Tensor):
        return weight @ inputs.t()
    columns = weight.t().contiguous()
    summed: Tensor = F.embedding_bag(
        inputs.columns, columns, per_sample_weights=inputs.values, mode="sum"
    )
    return weight[:, : inputs.dense.shape[1]] @ inputs.dense.t() + summed.t()


def gradient(error: Tensor, inputs: Inputs, features: int) -> Tensor:
    """Return the gradient by the weights of such a layer, [out, features].

    Args:
        error: gradient by the outputs, [out, n].
        inputs: n examples.
        features: width of the layer.
    """
    if isinstance(inputs, Tensor):
        return error @ inputs
    out, (_, columns, values) = len(error), inputs
    each = (error[:, :, None] * values).flatten(1)
    found = error.new_zeros(out, features).scatter_add_(1, columns.flatten().expand(out, -1), each)
    found[:, : inputs.dense.shape[1]] += error @ inputs.dense
    return found


def with_ones(inputs: Inputs, features: int) -> Inputs:
    """Return inputs with one more column, of ones.

    Args:
        inputs: n examples.
        features: their width, which is the number of the new column.
    """
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    return Sparse(
        inputs.dense,
        F.pad(inputs.columns, (0, 1), value=features),
        F.pad(inputs.values, (0, 1), value=1.0),
    )


def pieces(inputs: Inputs, count: int) -> list[Inputs]:
    """Return the examples in so many pieces, which differ in size by one at most."""
    if isinstance(inputs, Tensor):
        return list(inputs.tensor_split(count))
    parts = zip(*(part.tensor_split(count) for part in inputs), strict=True)
    return [Sparse(*part) for part in parts]
