"""Rows as an entry of the log holds them: bytes that need no schema and little room.

After MAGIC, each chunk is a header and four sections. The header is a uint32 and as many bytes of
JSON: ``{"n": rows, "names": […], "types": "fSb", "width": 1, "labels": true}``. A type is one of
LETTERS; it is a capital if values of the column are missing. The sections are

1. the values of integers, floats and times: int64 or float64 [columns, n]; weights come last, as
   float64, if the header has ``"weights": true``;
2. the lengths of texts in bytes: unsigned integers of ``width`` bytes, [columns, n]; those of the
   labels come last;
3. bits, the first row's the lowest of its byte, [columns, ceil(n / 8)] bytes: the values of each
   boolean column, then for each column with missing values whether a value is there;
4. the texts in UTF-8, in the order of their lengths.

The header and each section are padded to ALIGNMENT. Numbers are little-endian. A value that is
missing is 0, false or empty.
"""

from collections.abc import Iterator
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
from streams.rows.rows import TYPES, Chunk, Rows
from streams.rows.times import FIRST, LAST

MAGIC = b"rows\x01\0\0\0"
LETTERS = "nbifst"
"""Letters of null, boolean, integer, float, string and time, in the order of TYPES."""
KINDS = dict(zip(LETTERS, TYPES, strict=True))
ALIGNMENT = 8
LARGEST = float(np.finfo(np.float64).max)
LENGTH = Struct("<I")
HEADER_BYTES = 8 << 20
"""Longest header: 4,096 names of 256 characters."""
WIDTHS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
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


def letter_of(kind: pa.DataType) -> str:
    """Return the letter of one of TYPES."""
    return LETTERS[TYPES.index(kind)]


def _chunk_bytes(chunk: Chunk) -> bytes:
    n, names, types = len(chunk), chunk.columns.schema.names, ""
    numbers: list[bytes] = []
    booleans: list[bytes] = []
    there: list[bytes] = []
    texts: list[pa.StringArray] = []
    for column in chunk.columns.columns:
        letter = letter_of(column.type)
        if column.null_count and letter != "n":
            there.append(_bits(column.is_valid()))
            types += letter.upper()
        else:
            types += letter
        if letter == "t":
            column = column.cast(pa.int64())
        if letter in "ift":
            numbers.append(np.ascontiguousarray(_filled(column, 0).to_numpy()).tobytes())
        elif letter == "b":
            booleans.append(_bits(_filled(column, False)))
        elif letter == "s":
            texts.append(_filled(column, ""))
    if chunk.labels is not None:
        texts.append(chunk.labels)
    if chunk.weights is not None:
        numbers.append(chunk.weights.astype(np.float64).tobytes())
    lengths, text = _lengths_and_text(texts)
    longest = int(lengths.max(initial=0))
    width = next(width for width in WIDTHS if longest < 1 << 8 * width)
    more = {} if chunk.weights is None else {"weights": True}
    header = orjson.dumps(
        {"n": n, "names": names, "types": types, "width": width,
         "labels": chunk.labels is not None} | more
    )  # fmt: skip
    sections = (
        LENGTH.pack(len(header)) + header,
        b"".join(numbers),
        lengths.astype(WIDTHS[width]).tobytes(),
        b"".join(booleans + there),
        text,
    )
    return b"".join(section.ljust(_padded(len(section)), b"\0") for section in sections)


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
            header = orjson.loads(self._take(length).tobytes())
            n, names, types = header["n"], header["names"], header["types"]
            width, labelled = WIDTHS[header["width"]], header["labels"]
            weighted = header.get("weights", False)
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
            rows, cells = rows + n, cells + max(n, MIN_CELLS) * len(names)
            if rows > MAX_ROWS or cells > MAX_CELLS:
                raise TooManyError(
                    f"{rows:,} rows, at most {MAX_ROWS:,}, with {cells:,} cells, at most "
                    f"{MAX_CELLS:,}"
                )
            yield self._chunk(n, names, types, width, labelled, weighted)

    def _chunk(
        self,
        n: int,
        names: list[str],
        types: str,
        width: np.dtype[Any],
        labelled: bool,
        weighted: bool,
    ) -> Chunk:
        lower = types.lower()
        if unknown := set(lower) - set(LETTERS):
            raise ValueError(f"unknown type {min(unknown)!r}")
        byte = (n + 7) // 8
        capitals = sum(map(str.isupper, types)) - types.count("N")
        count = {letter: lower.count(letter) for letter in LETTERS}
        values = self._take(8 * n * (count["i"] + count["f"] + count["t"] + weighted))
        weights = None
        if weighted:
            wide = values[-8 * n :].view("<f8")
            check_weights(wide, n)
            values, weights = values[: -8 * n], wide.astype(np.float32)
        lengths = self._take(width.itemsize * n * (count["s"] + labelled)).view(width)
        bits = self._take(byte * (count["b"] + capitals))
        ends = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        text = pa.py_buffer(self._take(int(ends[-1])))
        offsets = ends.astype(np.int32)
        _check_numbers(names, lower, values.reshape(-1, 8 * n))
        _check_lengths(names, lower, lengths.reshape(-1, n), labelled)
        places = pa.py_buffer(offsets)
        pa.Array.from_buffers(pa.string(), len(lengths), [None, places, text]).validate(full=True)
        numbers, flags = pa.py_buffer(values), pa.py_buffer(bits)
        number = flag = start = 0
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
            else:
                own = numbers.slice(number, 8 * n)
                column = pa.Array.from_buffers(KINDS[letter], n, [is_there, own])
                number += 8 * n
            columns.append(column)
        labels = None
        if labelled:
            own = places.slice(4 * start, 4 * (n + 1))
            labels = pa.Array.from_buffers(KINDS["s"], n, [None, own, text])
        return Chunk(pa.RecordBatch.from_arrays(columns, names), labels, weights)

    def _take(self, size: int, alignment: int = ALIGNMENT) -> Bytes:
        """Return the next bytes; the reader goes on where the next section begins."""
        start, stop = self._next, self._next + size
        if stop > len(self._raw):
            raise ValueError(f"{stop - len(self._raw):,} bytes are missing at the end")
        self._next = stop + -stop % alignment
        return self._raw[start:stop]


def _check_numbers(names: list[str], letters: str, values: Bytes) -> None:
    """Check the values that readers of other formats would refuse or convert.

    Args:
        names, letters: of all columns.
        values: the bytes of the numbers, [columns with numbers, 8 n].

    Raises:
        InvalidBatchError: a value is at fault.
    """
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


def _check_lengths(names: list[str], letters: str, lengths: Lengths, labelled: bool) -> None:
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
