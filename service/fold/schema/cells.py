"""The values in rows, by column and type, whatever the chunks and the order of their columns."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.rows.rows import Rows

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

LARGEST = float(np.finfo(np.float32).max)
"""Numbers are clamped to ±LARGEST, so that all of them are finite in float32."""


@dataclass(frozen=True, eq=False)
class Cells:
    """All values of one column that have one type."""

    values: pa.Array
    """m values of one of `streams.rows.rows.TYPES`; none is null, and numbers are finite."""
    rows: Indices
    """int64 [m], the row of each value; each row is there once."""

    def __len__(self) -> int:
        """Return the number of values, m."""
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Numbers:
    """Where the numbers of columns go."""

    values: Floats
    """float32 [n, d], NaN where nothing was written."""
    places: Mapping[str, int]
    """Column of ``values`` by the name of a column of the rows."""

    def write(self, arrays: Mapping[str, pa.Array], indices: Indices) -> None:
        """Write the integers and floats of some columns; those that are missing stay NaN.

        Args:
            arrays: by name, [m].
            indices: of their rows, ascending.
        """
        found = [array.to_numpy(zero_copy_only=False) for array in arrays.values()]
        each = np.array(found, np.float64)
        finite = np.isfinite(each)
        if not finite.all():
            each[~finite] = np.nan
        np.clip(each, -LARGEST, LARGEST, out=each)
        places = [self.places[name] for name in arrays]
        if len(indices) < len(self.values):
            self.values[indices[:, None], places] = each.T
        elif places == [*range(len(places))]:  # a slice takes half the time of a list
            self.values[:, : len(places)] = each.T
        else:
            self.values[:, places] = each.T


NOWHERE = Numbers(np.empty((0, 0), np.float32), MappingProxyType({}))


def cells_of(
    rows: Rows, skip: Collection[str] = (), numbers: Numbers = NOWHERE
) -> dict[str, list[Cells]]:
    """Return the values of every column but some, in order of the columns' first appearance.

    A column has one entry in its list for each type, and an empty list if all its values are null.
    A null, a column that a chunk lacks, and a number that is not finite are all missing values.

    Args:
        rows: n of them.
        skip: names of the columns that are not returned.
        numbers: takes the integers and floats of its columns, which are not returned then.
    """
    found: dict[str, dict[int, tuple[list[pa.Array], list[Indices]]]] = {}
    for batches, indices in _alike(rows):
        wanted = [(k, n) for k, n in enumerate(batches[0].schema.names) if n not in skip]
        batch = pa.concat_batches(batches) if wanted and len(batches) > 1 else batches[0]
        plain: dict[str, pa.Array] = {}
        for k, name in wanted:
            array = batch.column(k)
            types = found.setdefault(name, {})
            if name in numbers.places and is_number(array.type):
                plain[name] = array
            elif array.null_count < len(array):
                parts = types.setdefault(array.type.id, ([], []))
                parts[0].append(array)
                parts[1].append(indices)
        if plain:
            numbers.write(plain, indices)
    return {
        name: [cells for parts in types.values() if len(cells := _cells(*parts))]
        for name, types in found.items()
    }


def is_number(of: pa.DataType) -> bool:
    """Return whether values of a type are integers or floats."""
    return bool(pa.types.is_integer(of) or pa.types.is_floating(of))


def labels_of(rows: Rows) -> Cells:
    """Return the labels of the rows that have one."""
    found = [chunk.labels for chunk in rows.chunks if chunk.labels is not None]
    has = np.array([chunk.labels is not None for chunk in rows.chunks], np.bool_)
    labelled = np.flatnonzero(np.repeat(has, [len(chunk) for chunk in rows.chunks]))
    return Cells(pa.concat_arrays(found) if found else pa.array([], pa.string()), labelled)


def label_numbers(labels: pa.StringArray) -> Floats:
    """Return the numbers that labels are, float32 [n]; NaN for a text that is none, or not finite.

    Args:
        labels: canonical texts, [n].
    """
    try:
        found = pc.cast(labels, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        found = np.array([_number_in(text) for text in labels.to_pylist()], np.float64)
    with np.errstate(over="ignore"):
        numbers: Floats = found.astype(np.float32)
    return np.where(np.isfinite(numbers), numbers, np.float32(np.nan))


def _number_in(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _alike(rows: Rows) -> list[tuple[list[pa.RecordBatch], Indices]]:
    """Return the chunks by their names and types, and the indices of their rows."""
    every = np.arange(len(rows), dtype=np.int64)
    if len(rows.chunks) == 1:
        return [([rows.chunks[0].columns], every)]
    groups: dict[bytes, tuple[list[pa.RecordBatch], list[Indices]]] = {}
    start = 0
    for chunk in rows.chunks:
        stop = start + len(chunk)
        key = chunk.columns.schema.serialize().to_pybytes()
        batches, indices = groups.setdefault(key, ([], []))
        batches.append(chunk.columns)
        indices.append(every[start:stop])
        start = stop
    return [(batches, np.concatenate(indices)) for batches, indices in groups.values()]


def _cells(arrays: Sequence[pa.Array], indices: Sequence[Indices]) -> Cells:
    values = arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
    rows = indices[0] if len(indices) == 1 else np.concatenate(indices)
    if values.null_count:
        rows = rows[values.is_valid().to_numpy(zero_copy_only=False)]
        values = values.drop_null()
    if pa.types.is_floating(values.type):
        finite = np.isfinite(values.to_numpy())
        if not finite.all():
            values, rows = values.filter(pa.array(finite)), rows[finite]
    return Cells(values, rows)
