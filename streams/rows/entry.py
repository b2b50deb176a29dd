"""Rows as an entry of the log holds them: bytes that need no schema and little room.

After MAGIC, each chunk is a header and its sections. The header is a uint32 and as many bytes of
JSON: ``{"n": rows, "names": […], "types": "fSb", "width": 1, "labels": true}``. A type is one of
LETTERS or SINGLE; it is a capital if values of the column are missing. The sections are

1. the values of integers, floats and times: int64 or float64 [columns, n]; weights come last, as
   float64, if the header has ``"weights": true``;
2. the lengths of texts in bytes: unsigned integers of ``width`` bytes, [columns, n]; those of the
   labels come last;
3. bits, the first row's the lowest of its byte, [columns, ceil(n / 8)] bytes: the values of each
   boolean column, then for each column with missing values whether a value is there;
4. the texts in UTF-8, in the order of their lengths;
5. the values of floats of the type SINGLE: float32 [columns, n]. Floats have that type if float32
   holds all values of their column exactly; earlier versions wrote none.

The header and each section are padded to ALIGNMENT. Numbers are little-endian. A value that is
missing is 0, false or empty.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from streams.batch import InvalidBatchError, TooManyError, check_weights
from streams.rows.bounds import (
    EXACT,
    MAX_BYTES,
    MAX_CELLS,
    MAX_ROWS,
    MAX_TEXT,
    check_names,
    check_size,
)
from streams.rows.numbers import Numbers, Values
from streams.rows.rows import TYPES, Chunk, Rows
from streams.rows.times import FIRST, LAST

MAGIC = b"rows\x01\0\0\0"
LETTERS = "nbifst"
"""Letters of null, boolean, integer, float, string and time, in the order of TYPES."""
SINGLE = "g"
"""The letter of floats that float32 holds exactly."""
KINDS = dict(zip(LETTERS, TYPES, strict=True)) | {SINGLE: TYPES[LETTERS.index("f")]}
ALIGNMENT = 8
LARGEST = float(np.finfo(np.float64).max)
LENGTH = Struct("<I")
HEADER_BYTES = 8 << 20
"""Longest header: 4,096 names of 256 characters."""
WIDTHS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
KNOWN_BYTES = 4_096
"""Longest header that is remembered."""
MIN_CELLS = 64
"""Cells that a column of a chunk counts for at least, since each costs memory of its own."""

BOUNDS = {
    "i": (-EXACT, EXACT),
    "f": (-LARGEST, LARGEST),
    "t": (FIRST.value, LAST.value),
}
"""Least and greatest numbers; those of times are in microseconds."""

Lengths = npt.NDArray[np.unsignedinteger[Any]]
Bytes = npt.NDArray[np.uint8]


def to_bytes(rows: Rows) -> bytes:
    """Return the bytes of rows; see the module for their form."""
    return MAGIC + b"".join(map(_chunk_bytes, rows.chunks))


def from_bytes(raw: bytes) -> Rows:
    """Return the rows in bytes of `to_bytes`; whatever they hold is checked.

    Raises:
        InvalidBatchError: the bytes hold no such rows, or rows beyond `streams.rows.bounds`.
    """
    if not raw.startswith(MAGIC):
        raise InvalidBatchError("not the rows of an entry: their first bytes are others")
    if len(raw) > MAX_BYTES:
        raise TooManyError(f"{len(raw):,} bytes of rows, at most {MAX_BYTES:,}")
    reader = _Reader(raw)
    try:
        chunks = tuple(reader.chunks())
    except (StructError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        if isinstance(error, InvalidBatchError):
            raise
        raise InvalidBatchError(f"not the rows of an entry: {error}") from error
    check_size(sum(map(len, chunks)), 1)
    return Rows(chunks)


def letters_of(chunk: Chunk) -> dict[str, str]:
    """Return the letter of each column's type, one of LETTERS."""
    if chunk.numbers is not None:
        return dict.fromkeys(chunk.names, "f")
    return {field.name: letter_of(field.type) for field in chunk.columns.schema}


def letter_of(kind: pa.DataType) -> str:
    """Return the letter of one of TYPES."""
    return LETTERS[TYPES.index(kind)]


@dataclass
class _Sections:
    """The content of the sections, apart from labels and weights."""

    types: str = ""
    numbers: list[bytes] = field(default_factory=list)
    texts: list[pa.StringArray] = field(default_factory=list)
    booleans: list[bytes] = field(default_factory=list)
    there: list[bytes] = field(default_factory=list)
    singles: list[bytes] = field(default_factory=list)

    def add(self, column: pa.Array) -> None:
        """Add a column of one of TYPES."""
        letter = letter_of(column.type)
        is_there = column.is_valid() if column.null_count and letter != "n" else None
        if letter == "f":
            letter = self.add_floats(_filled(column, 0).to_numpy()[None])
        elif letter in "it":
            integers = column.cast(pa.int64()) if letter == "t" else column
            numbers = np.ascontiguousarray(_filled(integers, 0).to_numpy())
            self.numbers.append(numbers.tobytes())
        elif letter == "b":
            self.booleans.append(_bits(_filled(column, False)))
        elif letter == "s":
            self.texts.append(_filled(column, ""))
        if is_there is not None:
            self.there.append(_bits(is_there))
            letter = letter.upper()
        self.types += letter

    def add_floats(self, values: Values) -> str:
        """Add finite floats, [columns, n]; return their types, which are not added."""
        if values.dtype == np.float32:
            self.singles.append(values.tobytes())
            return SINGLE * len(values)
        with np.errstate(over="ignore"):
            singles = values.astype(np.float32)
        is_exact = (singles == values).all(axis=1)
        self.numbers.append(values[~is_exact].tobytes())
        self.singles.append(singles[is_exact].tobytes())
        return "".join(SINGLE if exact else "f" for exact in is_exact.tolist())


def _chunk_bytes(chunk: Chunk) -> bytes:
    found = _Sections()
    if chunk.numbers is not None:
        found.types = found.add_floats(chunk.numbers.values)
    else:
        for column in chunk.columns.columns:
            found.add(column)
    if chunk.labels is not None:
        found.texts.append(chunk.labels)
    if chunk.weights is not None:
        found.numbers.append(chunk.weights.astype(np.float64).tobytes())
    lengths, text = _lengths_and_text(found.texts)
    longest = int(lengths.max(initial=0))
    width = next(width for width in WIDTHS if longest < 1 << 8 * width)
    more = {} if chunk.weights is None else {"weights": True}
    header = orjson.dumps(
        {"n": len(chunk), "names": chunk.names, "types": found.types, "width": width,
         "labels": chunk.labels is not None} | more
    )  # fmt: skip
    sections = (
        LENGTH.pack(len(header)) + header,
        b"".join(found.numbers),
        lengths.astype(WIDTHS[width]).tobytes(),
        b"".join(found.booleans + found.there),
        text,
        b"".join(found.singles),
    )
    return b"".join(section.ljust(_padded(len(section)), b"\0") for section in sections)


@dataclass(frozen=True)
class _Header:
    """The header of a chunk, checked."""

    n: int
    names: tuple[str, ...]
    types: str
    width: np.dtype[Any]
    labelled: bool
    weighted: bool

    @classmethod
    def of(cls, raw: bytes) -> "_Header":
        """Return the header in a JSON document.

        Raises:
            InvalidBatchError, KeyError, TypeError, ValueError: it is none.
        """
        found = orjson.loads(raw)
        n, names, types = found["n"], found["names"], found["types"]
        width, labelled = WIDTHS[found["width"]], found["labels"]
        weighted = found.get("weights", False)
        if not (
            type(n) is int
            and type(names) is list
            and set(map(type, names)) <= {str}
            and type(types) is str
            and len(names) == len(types)
            and type(labelled) is bool
            and type(weighted) is bool
        ):
            raise ValueError("a header has other types")
        check_size(n, len(names))
        check_names(names)
        if unknown := set(types.lower()) - KINDS.keys():
            raise ValueError(f"unknown type {min(unknown)!r}")
        return cls(n, tuple(names), types, width, labelled, weighted)


_known_header = lru_cache(256)(_Header.of)
"""Most entries of a stream have the header of one before."""


class _Reader:
    """Reads chunks from bytes, and never beyond their end."""

    def __init__(self, raw: bytes) -> None:
        self._raw = np.frombuffer(raw, np.uint8)
        self._next = len(MAGIC)

    def chunks(self) -> Iterator[Chunk]:
        rows = cells = 0
        while self._next < len(self._raw):
            (length,) = LENGTH.unpack(self._take(LENGTH.size, 1).tobytes())
            if length > HEADER_BYTES:
                raise ValueError(f"a header has {length:,} bytes, at most {HEADER_BYTES:,}")
            raw = self._take(length).tobytes()
            header = _known_header(raw) if length <= KNOWN_BYTES else _Header.of(raw)
            rows += header.n
            cells += max(header.n, MIN_CELLS) * len(header.names)
            if rows > MAX_ROWS or cells > MAX_CELLS:
                raise TooManyError(
                    f"{rows:,} rows, at most {MAX_ROWS:,}, with {cells:,} cells, at most "
                    f"{MAX_CELLS:,}"
                )
            yield self._chunk(header)

    def _chunk(self, header: _Header) -> Chunk:
        n, names, types, width = header.n, header.names, header.types, header.width
        lower, labelled = types.lower(), header.labelled
        byte = (n + 7) // 8
        capitals = sum(map(str.isupper, types)) - types.count("N")
        count = {letter: lower.count(letter) for letter in KINDS}
        values = self._take(8 * n * (count["i"] + count["f"] + count["t"] + header.weighted))
        weights = None
        if header.weighted:
            wide = values[-8 * n :].view("<f8")
            check_weights(wide, n)
            values, weights = values[: -8 * n], wide.astype(np.float32)
        lengths = self._take(width.itemsize * n * (count["s"] + labelled)).view(width)
        bits = self._take(byte * (count["b"] + capitals))
        ends = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        text = pa.py_buffer(self._take(int(ends[-1])))
        offsets = ends.astype(np.int32)
        singles = self._take(4 * n * count[SINGLE]).view("<f4").reshape(-1, n)
        _check_numbers(names, lower, values.reshape(-1, 8 * n), singles)
        _check_lengths(names, lower, lengths.reshape(-1, n), labelled)
        places = pa.py_buffer(offsets)
        if len(lengths):
            whole = pa.Array.from_buffers(pa.string(), len(lengths), [None, places, text])
            whole.validate(full=True)
        labels = None
        if labelled:
            own = places.slice(4 * n * count["s"], 4 * (n + 1))
            labels = pa.Array.from_buffers(KINDS["s"], n, [None, own, text])
        if set(types) <= {SINGLE, "f"}:
            floats: Values = singles
            if count["f"]:
                is_single = np.array([letter == SINGLE for letter in types])
                floats = np.empty((len(types), n))
                floats[is_single], floats[~is_single] = singles, values.view("<f8").reshape(-1, n)
            return Chunk(Numbers(names, floats), labels, weights)
        numbers, flags = pa.py_buffer(values), pa.py_buffer(bits)
        wide_singles = pa.py_buffer(singles.astype(np.float64))
        number = single = flag = start = 0
        there = count["b"] * byte
        columns = []
        for letter, capital in zip(lower, map(str.isupper, types), strict=True):
            is_there = None
            if capital and letter != "n":
                is_there = flags.slice(there, byte)
                there += byte
            if letter == "n":
                column = pa.nulls(n)
            elif letter == "s":
                own = places.slice(4 * start, 4 * (n + 1))
                column = pa.Array.from_buffers(KINDS["s"], n, [is_there, own, text])
                start += n
            elif letter == "b":
                column = pa.Array.from_buffers(KINDS["b"], n, [is_there, flags.slice(flag, byte)])
                flag += byte
            elif letter == SINGLE:
                own = wide_singles.slice(single, 8 * n)
                column = pa.Array.from_buffers(KINDS[letter], n, [is_there, own])
                single += 8 * n
            else:
                own = numbers.slice(number, 8 * n)
                column = pa.Array.from_buffers(KINDS[letter], n, [is_there, own])
                number += 8 * n
            columns.append(column)
        return Chunk(pa.RecordBatch.from_arrays(columns, [*names]), labels, weights)

    def _take(self, size: int, alignment: int = ALIGNMENT) -> Bytes:
        """Return the next bytes; the reader goes on where the next section begins."""
        start, stop = self._next, self._next + size
        if stop > len(self._raw):
            raise ValueError(f"{stop - len(self._raw):,} bytes are missing at the end")
        self._next = stop + -stop % alignment
        return self._raw[start:stop]


def _check_numbers(names: Sequence[str], letters: str, values: Bytes, singles: Values) -> None:
    """Check the values that readers of other formats would refuse or convert.

    Args:
        names, letters: of all columns.
        values: the bytes of the numbers, [columns with numbers, 8 n].
        singles: the floats of the type SINGLE, [columns, n].

    Raises:
        InvalidBatchError: a value is at fault.
    """
    if not (is_finite := np.isfinite(singles)).all():
        row, index = np.argwhere(~is_finite)[0]
        name = [name for name, letter in zip(names, letters, strict=True) if letter == SINGLE][row]
        raise InvalidBatchError(
            f"column {name!r} holds {singles[row, index]}, which is not finite", name, int(index)
        )
    if not len(values):
        return
    own = [k for k, letter in enumerate(letters) if letter in BOUNDS]
    for letter, (low, high) in BOUNDS.items():
        picked = [row for row, k in enumerate(own) if letters[k] == letter]
        numbers = values[picked].view("<f8" if letter == "f" else "<i8")
        is_fine = (low <= numbers) & (numbers <= high)
        if not is_fine.all():
            row, index = np.argwhere(~is_fine)[0]
            name = names[own[picked[row]]]
            raise InvalidBatchError(
                f"column {name!r} holds {numbers[row, index]}, which is outside {low}…{high}",
                name,
                int(index),
            )


def _check_lengths(names: Sequence[str], letters: str, lengths: Lengths, labelled: bool) -> None:
    """Check the lengths of texts.

    Args:
        names, letters: of all columns.
        lengths: in bytes, [columns of texts, n]; those of the labels come last.
        labelled: whether there are labels.

    Raises:
        InvalidBatchError: a text is too long, or a label is empty.
    """
    if labelled and not lengths[-1].all():
        index = int(lengths[-1].argmin())
        raise InvalidBatchError("the label is an empty string", "label", index)
    if lengths.max(initial=0) > MAX_TEXT:
        row, index = np.argwhere(lengths > MAX_TEXT)[0]
        fields = [name for name, letter in zip(names, letters, strict=True) if letter == "s"]
        name = [*fields, "label"][row]
        raise InvalidBatchError(
            f"a value of column {name!r} has {lengths[row, index]:,} bytes, at most {MAX_TEXT:,}",
            name,
            int(index),
        )


def _filled(column: pa.Array, value: object) -> pa.Array:
    return column.fill_null(value) if column.null_count else column


def _bits(column: pa.BooleanArray) -> bytes:
    return np.packbits(column.to_numpy(zero_copy_only=False), bitorder="little").tobytes()


def _lengths_and_text(columns: list[pa.StringArray]) -> tuple[npt.NDArray[np.int32], bytes]:
    """Return the lengths of all values in bytes, and the values."""
    texts = pa.concat_arrays(columns) if columns else pa.array([], pa.string())
    _, places, text = texts.buffers()
    offsets = np.frombuffer(places, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if text is None or not len(texts):
        return np.zeros(len(texts), np.int32), b""
    return offsets[1:] - offsets[:-1], text[offsets[0] : offsets[-1]].to_pybytes()


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT
