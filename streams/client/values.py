"""Labels, weights and ids as users hold them: lists, arrays, tensors, series, or a single value."""

from collections.abc import Iterable, Sized
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.batch import InvalidBatchError
from streams.client.errors import InvalidExamples
from streams.rows.labels import label_texts

S = TypeVar("S", bound=Sized)
Scalar = bool | int | float | str
Values = Iterable[object] | Scalar
"""One value an example; or the single value of a single example."""


@runtime_checkable
class Tensor(Protocol):
    """A tensor of torch, which need not be installed."""

    dtype: object

    def detach(self) -> "Tensor":
        """Return the values alone."""

    def cpu(self) -> "Tensor":
        """Return the values in the memory of the CPU."""

    def float(self) -> "Tensor":
        """Return the values as float32."""

    def numpy(self) -> npt.NDArray[Any]:
        """Return the values as an array."""


@runtime_checkable
class _HasList(Protocol):
    def tolist(self) -> list[object]: ...


@runtime_checkable
class _HasArrow(Protocol):
    """A series of polars."""

    def to_arrow(self) -> pa.Array: ...


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """Return the values of a tensor on any device; bfloat16, which numpy lacks, as float32."""
    own = tensor.detach().cpu()
    return (own.float() if str(own.dtype) == "torch.bfloat16" else own).numpy()


def list_of(values: Values, n: int | None, use: str) -> list[object]:
    """Return values of any kind as Python's own, [n].

    Args:
        values: one an example, or the single one of a single example.
        n: number of examples; None for any.
        use: what they are, such as ``labels``.

    Raises:
        InvalidExamples: there are more or fewer than n.
    """
    found: list[object]
    if isinstance(values, Scalar) or not isinstance(values, Iterable):
        found = [values]
    elif isinstance(values, Tensor):
        found = array_of(values).tolist()
    elif isinstance(values, pa.Array | pa.ChunkedArray):
        found = values.to_pylist()
    elif isinstance(values, _HasList):
        found = values.tolist()
    elif isinstance(values, _HasArrow):
        found = values.to_arrow().to_pylist()
    else:
        found = [v.item() if isinstance(v, np.generic) else v for v in values]
    return found if n is None else counted(found, n, use)


def column_of(values: Values, n: int, use: str) -> pa.Array:
    """Return values of any kind as a column of Arrow, [n].

    Values that have no common type become their canonical texts.

    Args, raises: as for `list_of`.
    """
    if isinstance(values, Tensor):
        values = array_of(values)
    elif isinstance(values, _HasArrow):
        values = values.to_arrow()
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return plain(counted(values, n, use))
    if isinstance(values, Scalar):
        values = [values]
    try:
        return plain(counted(pa.array(values, from_pandas=True), n, use))
    except (pa.ArrowException, ValueError, TypeError) as error:
        if isinstance(error, InvalidExamples):
            raise
        try:
            return label_texts(list_of(values, n, use), n)
        except InvalidBatchError as fault:
            raise InvalidExamples(str(fault), field=use, index=fault.index) from fault


def plain(column: pa.Array) -> pa.Array:
    """Return a column without views, which keep all texts in each part of it.

    A dictionary, if it has one, is one of strings.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        if pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type):
            return column
        column = plain(column.dictionary).take(column.indices)
    return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column


def counted(values: S, n: int, use: str) -> S:
    """Return values of which there are n.

    Raises:
        InvalidExamples: there are more or fewer.
    """
    if len(values) != n:
        message = f"{len(values):,} {use} for {n:,} examples; give one for each"
        raise InvalidExamples(message, field=use)
    return values
