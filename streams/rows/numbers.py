"""Columns of rows that are floats without a missing value, held in one array."""

from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Values = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Numbers:
    """n rows, of which most columns are such floats: what they cost goes by the array.

    As columns of a record batch each of them would cost objects, calls and checks of its own.
    """

    names: tuple[str, ...]
    """The names of all columns, in their order."""
    values: Values
    """Finite floats, [columns, n], in the order of their names; float32 stands for the same number
    as float64."""
    others: pa.RecordBatch | None = None
    """The other columns, n rows, each of one of `streams.rows.rows.TYPES`; None for none."""

    def __len__(self) -> int:
        """Return the number of rows, n."""
        return int(self.values.shape[1])

    @cached_property
    def columns(self) -> pa.RecordBatch:
        """All columns; the floats are float64."""
        wide, rows = np.ascontiguousarray(self.values, np.float64), count()
        others = (
            {} if self.others is None else dict(zip(self._others, self.others.columns, strict=True))
        )
        arrays = [
            others[name] if name in others else _array(wide[next(rows)]) for name in self.names
        ]
        return pa.RecordBatch.from_arrays(arrays, [*self.names])

    @property
    def buffer_bytes(self) -> int:
        """Bytes of memory that the values hold."""
        others = 0 if self.others is None else int(self.others.get_total_buffer_size())
        return self.values.nbytes + others

    def part(self, start: int, stop: int) -> "Numbers":
        """Return the rows from ``start`` up to ``stop``, without a copy."""
        others = None if self.others is None else self.others.slice(start, stop - start)
        return Numbers(self.names, self.values[:, start:stop], others)

    def split_off(self, name: str) -> "tuple[pa.Array, pa.RecordBatch | Numbers]":
        """Return one of the columns, and what is left without it."""
        names = tuple(each for each in self.names if each != name)
        if name in self._others:
            assert self.others is not None
            others = self.others.drop_columns([name])
            left = Numbers(names, self.values, others if others.num_columns else None)
            return self.others.column(name), left
        if len(self.values) < 2:
            return self.columns.column(name), self.columns.drop_columns([name])
        floats = [each for each in self.names if each not in self._others]
        place = floats.index(name)
        column = np.ascontiguousarray(self.values[place], np.float64)
        left = Numbers(names, np.delete(self.values, place, axis=0), self.others)
        return _array(column), left

    @property
    def _others(self) -> list[str]:
        names: list[str] = [] if self.others is None else self.others.schema.names
        return names


def _array(values: npt.NDArray[np.float64]) -> pa.Array:
    return pa.Array.from_buffers(pa.float64(), len(values), [None, pa.py_buffer(values)])
