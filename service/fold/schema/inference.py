"""The kind of a column whose kind nobody declared, from its first values."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from service.fold.schema.cells import Cells
from service.fold.schema.kinds import Kind
from service.fold.schema.values import distinct, times

WORDS = 3
"""Free text has more words than this on average."""


def infer(found: Sequence[Cells]) -> Kind | None:
    """Return the kind that most values have, at a tie the kind of the first; None without values.

    Truth values are BOOL, integers and floats NUMBER, timestamps TIME. Texts are CATEGORY, unless
    they are ISO 8601 times throughout, which JSON can only write as text: then TIME; or they have
    more than WORDS words on average and more than half of them are distinct: then TEXT.
    """
    count: dict[Kind, int] = {}
    first: dict[Kind, int] = {}
    for cells in found:
        kind, row = _kind(cells.values.type), int(cells.rows.min())
        count[kind] = count.get(kind, 0) + len(cells)
        first[kind] = min(first.get(kind, row), row)
    if not count:
        return None
    kind = min(count, key=lambda kind: (-count[kind], first[kind]))
    if kind is not Kind.CATEGORY:
        return kind
    written = [cells for cells in found if pa.types.is_string(cells.values.type)]
    if all(times(cells)[1].all() for cells in written):
        return Kind.TIME
    return Kind.TEXT if _is_free(written[0]) else kind


def _kind(of: pa.DataType) -> Kind:
    if pa.types.is_boolean(of):
        return Kind.BOOL
    if pa.types.is_timestamp(of):
        return Kind.TIME
    return Kind.CATEGORY if pa.types.is_string(of) else Kind.NUMBER


def _is_free(cells: Cells) -> bool:
    unique, codes = distinct(cells.values)
    if 2 * len(unique) <= len(cells):
        return False
    words = np.array([len(text.split()) for text in unique.to_pylist()], np.int64)
    return int(words[codes].sum()) > WORDS * len(cells)
