"""Text with delimiters, as files ``.csv`` and ``.tsv`` hold it: a header, numbers and a label.

`numpy.loadtxt` reads lines without quotes, and those with quotes that their cells do not need. The
strict reader of `streams.sources.records` takes four times as long. It reads from the first cell on
that needs quotes, and finds the place of a fault. Bytes that are not text become surrogates, so
that they have a place too.
"""

import bz2
import gzip
import io
import lzma
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streams.progress import progress_bar
from streams.sources.encodings import encoding
from streams.sources.faults import (
    LARGEST,
    SHOWN,
    TableError,
    label_fault,
    missing_label,
    number_fault,
    width_fault,
)
from streams.sources.header import find_header
from streams.sources.records import Record, records
from streams.sources.rounding import merged

HEAD = 1 << 17
"""Characters from the beginning among which the header is."""
CELLS = 1 << 18
"""Cells that are read at once."""
SHOWN_MERGES = 3
DECIMAL = b"0123456789+-.eE \t"
"""Characters of a number; `float` takes others too, such as underscores."""

Block = npt.NDArray[np.float64]
_Binary = io.BufferedReader | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile
_OPENERS: dict[str, Callable[[Path], _Binary]] = {
    ".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile,
}  # fmt: skip
_PACKED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz"}
_ARCHIVES = (b"PK\x03\x04", b"(\xb5/\xfd")
"""How files of zip begin, as workbooks are, and of Zstandard."""


@dataclass(frozen=True)
class Columns:
    """The contents of a file: n rows in its order."""

    features: npt.NDArray[np.float32]
    """[n, d], finite."""
    label: str
    """Name of the label's column."""
    texts: tuple[str, ...]
    """The different labels, in the order of their first rows."""
    codes: npt.NDArray[np.int64]
    """Index of each row's label among ``texts``, int64 [n]."""
    notes: tuple[str, ...]
    """Facts that the user may not expect, a sentence each."""


class _Codes(dict[str, int]):
    """Codes of labels by their cells, to which it adds those that are new.

    Raises:
        ValueError: a cell is no label.
    """

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        """Codes by label; a cell may have spaces around its label."""

    def __missing__(self, cell: str) -> int:
        text = cell.strip()
        if fault := label_fault(text):
            raise ValueError(fault)
        self[cell] = code = self.texts.setdefault(text, len(self.texts))
        return code


class DelimitedFile:
    """A file of text with delimiters.

    Args:
        path: of the file.
        label: name of the label's column; by default LABEL, otherwise the last that has a name.

    Raises:
        TableError: the header is missing or not clear, or the file is no text.
    """

    def __init__(self, path: Path, label: str | None = None) -> None:
        self._path = path
        with opened(path) as file:
            is_tab = ".tsv" in map(str.lower, path.suffixes[-2:])
            self.header = find_header(file.readlines(HEAD), label, "\t" if is_tab else "")
        ends = rf"\r\n{re.escape(self.header.delimiter)}"
        self._needless = re.compile(rf'"(?<![^{ends}]")([^"{ends}]*)"(?![^{ends}])')
        """A quoted cell that would be the same without quotes."""

    def read(self) -> Columns:
        """Return the columns.

        Raises:
            TableError: a cell is at fault; the message names line and column.
        """
        header = self.header
        codes = _Codes()
        with opened(self._path) as file:
            lines = iter(progress_bar(self._path.name, lines=file))
            blocks = list(self._blocks(lines, codes))
        if not blocks:
            raise TableError("the table has no examples")
        own = _joined(blocks, header.label).astype(np.int64)
        label = header.names[header.label]
        if header.may_be_data and label in codes.texts:
            raise TableError("the file begins with data; its first line must name the columns")
        if "-" in codes.texts and "+" not in codes.texts:
            row = int((own == codes.texts["-"]).argmax())
            raise TableError(f"line {self.line(row)}, column {label!r}: {missing_label('-')}")
        notes = [f"several columns are named {name!r}" for name in header.repeated]
        for k in range(header.first):
            notes.append(self._index_note(k, _joined(blocks, k)))
        rounded = [block.astype(np.float32) for block in blocks]
        is_rounded = np.zeros(header.end, np.bool_)
        for block, singles in zip(blocks, rounded, strict=True):
            is_rounded |= (singles != block).any(axis=0)
        inexact = [k for k in header.features if is_rounded[k]]
        merges = [*filter(None, (self._merge_note(k, _joined(blocks, k)) for k in inexact))]
        notes += merges[:SHOWN_MERGES]
        if more := len(merges[SHOWN_MERGES:]):
            notes.append(f"float32 keeps fewer values of {more:,} more columns")
        features = np.concatenate([singles[:, header.features] for singles in rounded])
        return Columns(features, label, tuple(codes.texts), own, tuple(notes))

    def _blocks(self, lines: Iterator[str], codes: _Codes) -> Iterator[Block]:
        """Yield the cells [n, end] of some rows each, labels as their codes."""
        header, line = self.header, 1
        for _ in islice(lines, header.lines):
            line += 1
        rows = max(1, CELLS // len(header.names))
        while chunk := list(islice(lines, rows)):
            block = self._plain_block(chunk, codes)
            if block is None:
                strict = records(chain(chunk, lines), header.delimiter, line)
                while batch := list(islice(strict, rows)):
                    yield self._strict_block(batch, codes)
                return
            line += len(chunk)
            yield block

    def _plain_block(self, lines: Sequence[str], codes: _Codes) -> Block | None:
        """Return the cells of lines without faults, and without quotes that they need; otherwise
        None."""
        header = self.header
        if header.end < len(header.names):
            return None
        text: Iterable[str] = lines
        if any('"' in line for line in lines):
            bare = self._needless.sub(r"\1", "".join(lines))
            if '"' in bare:
                return None
            text = io.StringIO(bare, newline="")
        with warnings.catch_warnings(action="ignore"):  # of lines that are all blank
            try:
                block = np.loadtxt(
                    text, np.float64, comments=None, delimiter=header.delimiter, encoding=None,
                    converters={header.label: codes.__getitem__}, ndmin=2,
                )  # fmt: skip
            except ValueError:
                return None
        is_sound = block.shape[1] == header.end and (np.abs(block) <= LARGEST).all()
        return block if is_sound else None

    def _strict_block(self, batch: Sequence[Record], codes: _Codes) -> Block:
        """Return the cells of records.

        Raises:
            TableError: one has a fault; the message names the first.
        """
        try:
            return self._converted(batch, codes)
        except ValueError:
            for line, row in batch:
                self._check(line, row)
            raise

    def _converted(self, batch: Sequence[Record], codes: _Codes) -> Block:
        """Return the cells of records.

        Raises:
            ValueError: a record has a fault.
        """
        own, end, width = self.header.label, self.header.end, len(self.header.names)
        cells: list[str] = []
        for _, row in batch:
            if len(row) != width or any(map(str.strip, row[end:])):
                raise ValueError("the row has other columns")
            cells += row[:own]
            cells.append(str(codes[row[own]]))
            cells += row[own + 1 : end]
        if "".join(cells).encode().translate(None, DECIMAL):
            if any(map(number_fault, cells)):
                raise ValueError("a cell is no number")
            cells = [*map(str.strip, cells)]  # of spaces that `float` does not know
        block = np.fromiter(map(float, cells), np.float64, len(cells)).reshape(-1, end)
        if not (np.abs(block) <= LARGEST).all():
            raise ValueError("a number is not finite in float32")
        return block

    def _check(self, line: int, row: Sequence[str]) -> None:
        """Check a record.

        Raises:
            TableError: it has a fault; the message names the first.
        """
        header = self.header
        if fault := width_fault(row, len(header.names)):
            raise TableError(f"line {line} {fault}")
        for k, text in enumerate(row):
            bare = text.strip()
            if k == header.label and not bare:
                raise TableError(f"line {line} has no label in {header.names[k]!r}")
            if k >= header.end:
                fault = bare and f"{bare[:SHOWN]!r} has no name in the header; add one"
            else:
                fault = label_fault(bare) if k == header.label else number_fault(text)
            if fault:
                raise TableError(f"line {line}, {header.column(k)}: {fault}")

    def _index_note(self, index: int, column: Block) -> str:
        if (np.diff(column) != 1).any():
            raise TableError(
                f"{self.header.column(index)} does not count the rows: name it in the header if it "
                "is a feature, or remove it (to_csv(index=False))"
            )
        return f"{self.header.column(index)} counts the rows and is not learned"

    def _merge_note(self, index: int, column: Block) -> str:
        """Return what float32 makes of a column; empty if all its values stay apart."""
        if (found := merged(column)) is None:
            return ""
        what = (
            f"float32 keeps {found.kept:,} of {found.different:,} different values; "
            f"{found.low!r} and {found.high!r} become one"
        )
        if found.is_harmful:
            line = self.line(int((column == found.high).argmax()))
            raise TableError(
                f"line {line}, {self.header.column(index)}: {what}; subtract an offset, rescale "
                "the column, or remove it if it is an id"
            )
        return f"{self.header.column(index)}: {what}"

    def line(self, row: int) -> int:
        """Return the line in which the row of that index begins."""
        with opened(self._path) as file:
            after = islice(file, self.header.lines, None)
            rows = records(after, self.header.delimiter, self.header.lines + 1)
            line, _ = next(islice(rows, row, None))
        return line


def _joined(blocks: Sequence[Block], index: int) -> Block:
    return np.concatenate([block[:, index] for block in blocks])


def _plain(path: Path) -> io.BufferedReader:
    return path.open("rb")


def opened(path: Path) -> io.TextIOWrapper:
    """Open a file as text.

    Raises:
        TableError: it is packed in a way that its name does not tell.
    """
    binary = _OPENERS.get(path.suffix.lower(), _plain)(path)
    try:
        start = binary.peek(8)
        for beginning, packed in _PACKED.items():
            if start.startswith(beginning):
                raise TableError(f"the file is compressed; its name must end in .csv{packed}")
        if start.startswith(_ARCHIVES):
            raise TableError("the file is an archive or a workbook; save the table as CSV")
    except BaseException:
        binary.close()
        raise
    return io.TextIOWrapper(binary, encoding(start), "surrogateescape", newline="")
