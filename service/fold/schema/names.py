"""Readable names of keys, so that features can be read back from a state."""

import numpy as np

from service.fold.schema.cells import cells_of
from service.fold.schema.features import (
    Feature,
    bools,
    categories,
    crosses,
    moments,
    parts,
    words,
)
from service.fold.schema.keys import missing_key
from service.fold.schema.kinds import Kind
from service.fold.schema.schema import Schema
from streams.rows.rows import Rows


def named_keys(schema: Schema, rows: Rows) -> dict[int, str]:
    """Return the readable name of each distinct key that `service.fold.schema.encode` makes.

    Names are such as ``plan=basic``, ``plan is missing``, ``at:hour=13``, ``note=late fee`` and
    ``plan=basic × at:hour=13``. The order is that of the columns, then of the crosses.
    """
    n, found = len(rows), cells_of(rows)
    features: list[Feature] = []
    names: dict[int, str] = {}
    for column in schema.columns:
        cells = found.get(column.name, [])
        new: list[Feature] = []
        match column.kind:
            case Kind.CATEGORY:
                new = [categories(column.name, cells)]
            case Kind.BOOL:
                new = [bools(column.name, cells)]
            case Kind.TIME:
                new = list(parts(column, *moments(cells)))
            case Kind.TEXT:
                names |= {k: f"{column.name}={t}" for t, k in words(column.name, cells)[1].items()}
        for feature in new:
            names.update(feature.names())
        if not new and column.kind is not None:
            names[int(missing_key(column.name))] = f"{column.name} is missing"
        features += new
    single = np.array([feature.keys(n) for feature in features], np.uint64)
    single = single.reshape(len(features), n)
    for (one, two), keys in zip(schema.pairs.T.tolist(), crosses(schema, single), strict=True):
        distinct, at = np.unique(keys, return_index=True)
        sides = zip(single[one, at].tolist(), single[two, at].tolist(), strict=True)
        named = [f"{names[a]} × {names[b]}" for a, b in sides]
        names.update(zip(distinct.tolist(), named, strict=True))
    return names


def dense_names(schema: Schema) -> tuple[str, ...]:
    """Return the name of each dense place: ``age``, or ``at:age`` for a time."""
    columns = [schema.columns[index] for index in schema.dense]
    return tuple(f"{c.name}:age" if c.kind is Kind.TIME else c.name for c in columns)
