"""Tables of FlatBuffers, read with bounds (https://flatbuffers.dev/internals/)."""

from collections.abc import Iterator
from struct import Struct

I8, U8, I16 = Struct("<b"), Struct("<B"), Struct("<h")
U16, I32, U32, I64 = Struct("<H"), Struct("<i"), Struct("<I"), Struct("<q")


class FlatbufferError(ValueError):
    """An offset leads out of the buffer."""


class Table:
    """A table in a buffer.

    Args:
        raw: the buffer.
        place: of the table; None for the root.

    Raises:
        FlatbufferError: the table lies outside the buffer.
    """

    def __init__(self, raw: bytes, place: int | None = None) -> None:
        self.raw = raw
        self.place = self._get(U32, 0) if place is None else place
        self._fields = self.place - self._get(I32, self.place)
        self._end = self._get(U16, self._fields)

    def _get(self, kind: Struct, place: int) -> int:
        if not 0 <= place <= len(self.raw) - kind.size:
            raise FlatbufferError(f"an offset leads to byte {place} of {len(self.raw)}")
        (value,) = kind.unpack_from(self.raw, place)
        return int(value)

    def _field(self, index: int) -> int | None:
        """Return the place of a field, or None if the table lacks it."""
        entry = 4 + 2 * index
        if entry + 2 > self._end or not (offset := self._get(U16, self._fields + entry)):
            return None
        return self.place + offset

    def number(self, index: int, kind: Struct, default: int = 0) -> int:
        """Return a number that is stored in the table."""
        place = self._field(index)
        return default if place is None else self._get(kind, place)

    def table(self, index: int) -> "Table | None":
        """Return a table that a field leads to."""
        place = self._field(index)
        return None if place is None else Table(self.raw, place + self._get(U32, place))

    def _vector(self, index: int, size: int) -> tuple[int, int]:
        """Return the place of the first element of a vector, and their number."""
        if (place := self._field(index)) is None:
            return 0, 0
        place += self._get(U32, place)
        count = self._get(U32, place)
        if place + 4 + count * size > len(self.raw):
            raise FlatbufferError(f"a vector of {count} elements is longer than the buffer")
        return place + 4, count

    def count(self, index: int) -> int:
        """Return the number of elements of a vector; one that is missing has none."""
        return self._vector(index, 1)[1]

    def text(self, index: int) -> bytes:
        """Return the bytes of a string."""
        place, count = self._vector(index, 1)
        return self.raw[place : place + count]

    def tables(self, index: int) -> "Iterator[Table]":
        """Yield the tables of a vector."""
        place, count = self._vector(index, 4)
        for k in range(place, place + 4 * count, 4):
            yield Table(self.raw, k + self._get(U32, k))

    def structs(self, index: int, kind: Struct) -> list[tuple[int, ...]]:
        """Return the structs of a vector, each of which is aligned as its members are."""
        place, count = self._vector(index, kind.size)
        return list(kind.iter_unpack(self.raw[place : place + count * kind.size]))
