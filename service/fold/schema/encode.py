"""Rows as numbers and keys: what networks and tables learn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from service.fold.schema.cells import (
    LARGEST,
    Cells,
    Floats,
    Indices,
    Numbers,
    cells_of,
    label_numbers,
    labels_of,
)
from service.fold.schema.features import (
    Feature,
    Sparse,
    bools,
    categories,
    crosses,
    joined,
    moments,
    parts,
    words,
)
from service.fold.schema.keys import Keys, missing_key
from service.fold.schema.kinds import Kind
from service.fold.schema.schema import Schema
from service.fold.schema.values import age, numbers
from streams.rows.numbers import Values
from streams.rows.rows import Rows, join

NONE = np.empty(0, np.int64)
NO_ROWS, NO_KEYS = np.empty(0, np.int32), np.empty(0, np.uint64)
NO_VALUES, NO_COLUMNS = np.empty(0, np.float32), np.empty(0, np.int16)


@dataclass(frozen=True, eq=False)
class Encoded:
    """n rows as numbers and keys.

    Each row has the keys of its categories, of truth values and of parts of times in the order of
    the columns; then those of crosses; then, again by column, words and missing values. So equal
    rows have equal features, whatever the rows around them.
    """

    dense: Floats
    """float32 [n, width], NaN where missing: NUMBER columns as they are, TIME columns as days since
    2020-01-01 UTC. The places are those of `service.fold.schema.schema.Schema.dense`."""
    rows: npt.NDArray[np.int32]
    """int32 [m], ascending: the row of each key."""
    keys: Keys
    """uint64 [m], as `service.fold.schema.keys` defines them."""
    values: Floats
    """float32 [m]: 1, and less for words."""
    columns: npt.NDArray[np.int16]
    """int16 [m], index of the column that each key is of; -1 for a cross."""
    labels: Indices | Floats
    """int64 [n], index into the schema's labels; -1 for a row without a label, and for a label that
    the schema has no room for. Where labels are numbers, float32 [n], NaN for a row without."""
    missing: Indices
    """int64 [columns], missing values by column; values of a wrong kind are missing."""
    ignored: int
    """Values in columns that the schema does not have."""
    weights: Floats | None = None
    """float32 [n]; None for 1."""
    singles: int = 0
    """Keys that every row has, before all others: of categories, truth values, parts of times."""
    is_whole: bool = False
    """True if surely no dense value and no label is missing."""


def encode(schema: Schema, rows: Rows) -> Encoded:
    """Return rows as numbers and keys.

    A row's result depends on the schema and its own values alone: neither on the chunks nor on the
    order of columns. Nothing is raised: a value of a wrong kind counts as missing.
    """
    return encode_each(schema, [rows])[0]


def encode_each(schema: Schema, batches: Sequence[Rows]) -> list[Encoded]:
    """Return what `encode` returns for each batch; together they cost less than one by one."""
    rows = join(batches)
    if (alone := _numbers_alone(schema, rows)) is not None:
        return _encoded_numbers(schema, batches, alone, _labels(schema, rows))
    n, counts = len(rows), _Counts(batches)
    dense = np.full((n, schema.width), np.nan, np.float32)
    found = cells_of(rows, numbers=Numbers(dense, schema.numbers))
    for name, place in schema.numbers.items():
        _fill(dense[:, place], found.get(name, []))
    is_absent = np.isnan(dense)
    gaps = np.asarray(is_absent.any(axis=0))
    missing = counts.lengths[:, None].repeat(len(schema.columns), axis=1)
    features: list[Feature] = []
    ragged: list[tuple[int, Sparse]] = []
    for index, column in enumerate(schema.columns):
        cells = found.get(column.name, [])
        match column.kind:
            case Kind.NUMBER:
                missing[:, index] = 0
                if gaps[place := schema.place[index]]:
                    absent = np.flatnonzero(is_absent[:, place])
                    missing[:, index] = counts.of(absent)
                    ragged.append((index, _flags(column.name, absent)))
            case Kind.TIME:
                at, times = moments(cells)
                dense[at, schema.place[index]] = age(times)
                missing[:, index] -= counts.of(at)
                features.extend(parts(column, at, times))
            case Kind.CATEGORY:
                features.append(categories(column.name, cells))
                missing[:, index] -= counts.of_feature(features[-1])
            case Kind.BOOL:
                features.append(bools(column.name, cells))
                missing[:, index] -= counts.of_feature(features[-1])
            case Kind.TEXT:
                absent = np.setdiff1d(
                    np.arange(n), np.concatenate([NONE, *(c.rows for c in cells)])
                )
                missing[:, index] = counts.of(absent)
                ragged.append((index, words(column.name, cells)[0]))
                ragged.append((index, _flags(column.name, absent)))
            case None:
                pass
    single = np.array([feature.keys(n) for feature in features], np.uint64)
    single = single.reshape(len(features), n)
    own = [feature.column for feature in schema.singles]
    of_fixed = np.array([*own, *[-1] * schema.pairs.shape[1]], np.int16)
    sparse, of_keys = _by_row(np.concatenate([single, crosses(schema, single)]), of_fixed, ragged)
    labels = _labels(schema, rows)
    ignored = sum(
        (counts.of(c.rows) for name, own in found.items() if name not in schema.index for c in own),
        np.zeros(len(batches), np.int64),
    )
    return [
        Encoded(
            dense[start:stop],
            (sparse.rows[low:high] - start).astype(np.int32),
            sparse.keys[low:high],
            sparse.values[low:high],
            of_keys[low:high],
            labels[start:stop],
            missing[k],
            int(ignored[k]),
            batches[k].weights,
            len(features),
        )
        for k, ((start, stop), (low, high)) in enumerate(
            zip(
                pairwise(counts.ends),
                pairwise(np.searchsorted(sparse.rows, counts.ends)),
                strict=True,
            )
        )
    ]


def _labels(schema: Schema, rows: Rows) -> Indices | Floats:
    """Return the labels of rows, as `Encoded` holds them."""
    if not schema.numeric_labels:
        return schema.codes(rows)
    labelled = labels_of(rows)
    labels = np.full(len(rows), np.nan, np.float32)
    labels[labelled.rows] = label_numbers(labelled.values)
    return labels


def _numbers_alone(schema: Schema, rows: Rows) -> Floats | None:
    """Return the dense values of rows, float32 [n, width], if that is all they have.

    That is so if all columns of the schema are numbers, and the rows have all of them as floats,
    none of which is missing. Otherwise the result is None.
    """
    found: list[tuple[Values, Indices | slice]] = []
    for chunk in rows.chunks:
        if chunk.numbers is None or (places := schema.places_of(chunk.numbers.names)) is None:
            return None
        found.append((chunk.numbers.values, places))
    if not len(rows):
        return None
    dense = np.empty((len(rows), schema.width), np.float32)
    start = 0
    for values, places in found:
        own = dense[start : (start := start + values.shape[1])]
        own[:] = values[places].T if values.dtype == np.float32 else _singles(values[places]).T
    return dense


def _singles(values: Values) -> Floats:
    return values.clip(-LARGEST, LARGEST).astype(np.float32)


def _encoded_numbers(
    schema: Schema, batches: Sequence[Rows], dense: Floats, labels: Indices | Floats
) -> list[Encoded]:
    """Return the rows of each batch, all of whose values are numbers.

    Args:
        schema: of the rows.
        batches: of rows.
        dense: float32 [n, width], of all batches.
        labels: of all batches.
    """
    found, start = [], 0
    is_whole = bool(np.isfinite(labels).all() if schema.numeric_labels else labels.min() >= 0)
    for batch in batches:
        own = slice(start, start := start + len(batch))
        missing = np.zeros(len(schema.columns), np.int64)
        nothing = (NO_ROWS, NO_KEYS, NO_VALUES, NO_COLUMNS)
        found.append(
            Encoded(dense[own], *nothing, labels[own], missing, 0, batch.weights, is_whole=is_whole)
        )
    return found


class _Counts:
    """Counts rows by the batch that they are in."""

    def __init__(self, batches: Sequence[Rows]) -> None:
        lengths = list(map(len, batches))
        self.ends, self.lengths = np.cumsum([0, *lengths]), np.array(lengths)
        self._of = np.repeat(np.arange(len(batches)), lengths)

    def of(self, rows: Indices) -> Indices:
        """Return how many of the rows each batch has, int64 [batches]."""
        return np.bincount(self._of[rows], minlength=len(self.ends) - 1)

    def of_feature(self, feature: Feature) -> Indices:
        """Return how many rows of each batch have a value, int64 [batches]."""
        if feature.present() == len(self._of):
            return self.lengths
        return sum((self.of(group.rows) for group in feature.groups), 0 * self.lengths)


def _fill(place: Floats, found: Sequence[Cells]) -> None:
    """Write the values of a NUMBER column into its place, [n]; other values stay NaN."""
    for cells in found:
        values, right = numbers(cells)
        place[cells.rows[right]] = values[right].clip(-LARGEST, LARGEST)


def _flags(column: str, rows: Indices) -> Sparse:
    """Return the key of a missing value in each of m rows."""
    n = len(rows)
    return Sparse(rows, np.full(n, missing_key(column)), np.ones(n, np.float32))


def _by_row(
    fixed: Keys, of_fixed: npt.NDArray[np.int16], ragged: Sequence[tuple[int, Sparse]]
) -> tuple[Sparse, npt.NDArray[np.int16]]:
    """Return all keys by row, and the column of each; within a row, in their order.

    Args:
        fixed: uint64 [f, n], the keys of which every row has one, of value 1.
        of_fixed: int16 [f], their columns.
        ragged: further keys, each part with its column.
    """
    f, n = fixed.shape
    if not (f or ragged):
        return joined([]), np.empty(0, np.int16)
    more = joined([part for _, part in ragged])
    sizes = np.array([len(part.rows) for _, part in ragged], np.int64)
    of_more = np.array([column for column, _ in ragged], np.int16).repeat(sizes)
    order = np.argsort(more.rows, kind="stable")
    rows, counts = more.rows[order], np.bincount(more.rows, minlength=n)
    before = counts.cumsum() - counts
    starts = np.arange(n) * f + before
    places = starts[rows] + f + np.arange(len(rows)) - before[rows]
    keys = np.empty(f * n + len(rows), np.uint64)
    columns = np.empty(len(keys), np.int16)
    first = starts[:, None] + np.arange(f)
    keys[first], columns[first] = fixed.T, of_fixed
    keys[places], columns[places] = more.keys[order], of_more[order]
    values = np.ones(len(keys), np.float32)
    values[places] = more.values[order]
    return Sparse(np.repeat(np.arange(n), f + counts), keys, values), columns
