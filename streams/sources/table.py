"""A user's own stream: a table in a file, learned in the order of its rows.

``.csv`` and ``.tsv``, also compressed (``.gz``, ``.bz2``, ``.xz``), begin with a header; all
columns but the label's hold numbers. ``.safetensors`` holds ``features`` and ``labels``,
as `streams.batch.Batch.to_bytes` writes them.
"""

import bz2
import csv
import gzip
import lzma
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from streams.batch import Batch, InvalidBatchError, check_features, decode
from streams.errors import FunnelError
from streams.progress import progress_bar
from streams.sources.catalog import Shift, Stream

LABEL = "label"
"""Name of the label's column; without a column of that name, the last one is taken."""
DELIMITERS = ",;\t"
MAX_CLASSES = 10_000
SHOWN_CLASSES = 20
LARGEST = float(np.finfo(np.float32).max)

_OPENERS: dict[str, Callable[..., IO[Any]]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open,
}  # fmt: skip


class TableError(FunnelError, ValueError):
    """A file is not a table of labelled examples; the message says where, and what to do."""


@dataclass(frozen=True)
class Table:
    """Labelled examples from a file."""

    path: Path
    batch: Batch
    """All examples in the order of the file; features fp32 [n, d] if they were text."""
    label: str
    """Name of the label's column."""
    names: tuple[str, ...]
    """The labels' names by number; empty if the labels were numbers from 0."""

    @property
    def classes(self) -> int:
        """Number of classes, at least 2."""
        return len(self.names) or max(2, int(self.batch.labels.max()) + 1)

    def stream(self, examples: int | None = None) -> Stream:
        """Return the examples as a stream; the first ``examples`` of them if that is given."""
        length = min(examples or len(self.batch), len(self.batch))
        width = self.batch.features.shape[1]
        order = (Shift(0, "in the order of the file"),)
        return Stream(
            self.path.name, width, self.classes, length, order, lambda *_: iter([self.batch])
        )

    def __str__(self) -> str:
        """Return a line that describes the table."""
        n, width = self.batch.features.shape
        shown = ", ".join(f"{k} = {name}" for k, name in enumerate(self.names[:SHOWN_CLASSES]))
        more = ", …" if len(self.names) > SHOWN_CLASSES else ""
        classes = f"{self.classes} classes" + (
            f" (numbered by this file alone: {shown}{more})" if shown else ""
        )
        return f"{self.path.name}: {n:,} examples, {width} features, {self.label!r} of {classes}"


def read(path: Path, label: str | None = None) -> Table:
    """Read a whole file.

    Args:
        path: a file of one of the kinds that the module names.
        label: name of the label's column in text; by default LABEL, otherwise the last column.

    Raises:
        TableError: the file cannot be read, is of another kind, or does not hold finite numbers
            and classes throughout.
    """
    kinds = [suffix.lower() for suffix in path.suffixes]
    try:
        if kinds[-1:] == [".safetensors"]:
            return _from_safetensors(path)
        if {".csv", ".tsv"} & set(kinds[-2:]):
            return _from_text(path, label)
    except (UnicodeDecodeError, EOFError, csv.Error, lzma.LZMAError, zlib.error) as error:
        raise TableError(f"{path} cannot be read as UTF-8 text: {error}") from error
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    raise TableError(f"{path}: a table ends in .csv, .tsv (.gz, .bz2, .xz) or .safetensors")


def _from_safetensors(path: Path) -> Table:
    try:
        batch = decode(path.read_bytes())
        check_features(batch.features, batch.features.shape[-1])
    except InvalidBatchError as error:
        raise TableError(f"{path}: {error}") from error
    labels = batch.labels
    if labels.shape != (len(batch.features),) or labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise TableError(f"{path}: labels must be from 0 to {MAX_CLASSES - 1}, one an example")
    return Table(path, batch, "labels", ())


def _from_text(path: Path, label: str | None) -> Table:
    codes: dict[str, int] = {}

    def code(text: str) -> int:
        return codes.setdefault(text.strip(), len(codes))

    with _open(path) as file, warnings.catch_warnings(action="ignore"):  # checked below
        header, delimiter = _header(path, file)
        wanted = label or (LABEL if LABEL in header else header[-1])
        if header.count(wanted) != 1:
            many = "several columns" if wanted in header else "no column"
            raise TableError(f"{path} has {many} {wanted!r}; its columns are {', '.join(header)}")
        own = header.index(wanted)
        lines = progress_bar(path.name, lines=file)
        try:
            whole = np.loadtxt(
                lines, np.float32, comments=None, delimiter=delimiter, converters={own: code},
                encoding=None, ndmin=2, quotechar='"',
            )  # fmt: skip
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise TableError(f"{path}: {_fault(path, header, own, delimiter) or error}") from error
    if not len(whole):
        raise TableError(f"{path} has no examples")
    if whole.shape[1] != len(header) or not np.isfinite(whole).all() or "" in codes:
        raise TableError(f"{path}: {_fault(path, header, own, delimiter)}")
    numbers, names = _numbered(list(codes), wanted, path)
    if not 1 < len(codes) <= MAX_CLASSES:
        raise TableError(
            f"{path}: {len(codes):,} different labels in {wanted!r}: is it the label? "
            "(--label NAME)"
        )
    labels = numbers[whole[:, own].astype(np.int64)]
    return Table(path, Batch(np.delete(whole, own, axis=1), labels), wanted, names)


def _header(path: Path, file: IO[str]) -> tuple[list[str], str]:
    """Return the names of the columns, and the delimiter."""
    first = file.readline()
    delimiter = max(DELIMITERS, key=first.count)
    names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    if len(names) < 2:
        raise TableError(f"{path} needs a header of two columns or more, got {first.strip()!r}")
    numbers = list(filter(_is_number, names))
    are_names = all(map(str.isdecimal, numbers)) and len(set(numbers)) == len(numbers)
    if len(numbers) == len(names) or (len(numbers) == len(names) - 1 and not are_names):
        raise TableError(f"{path} begins with data; its first line must name the columns")
    return names, delimiter


def _numbered(
    texts: Sequence[str], column: str, path: Path
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return a number from 0 for each label, and the names unless labels are such numbers."""
    try:
        values = [float(text) for text in texts]
    except ValueError:
        names, numbers = np.unique(texts, return_inverse=True)
        return numbers, tuple(names.tolist())
    for text, value in zip(texts, values, strict=True):
        if not value.is_integer():
            raise TableError(
                f"{path}: {text} in {column!r} is not a class: is it the label? (--label NAME)"
            )
    if min(values) >= 0 and max(values) < MAX_CLASSES:
        return np.array(values, dtype=np.int64), ()
    known, numbers = np.unique(values, return_inverse=True)
    return numbers, tuple(f"{value:.0f}" for value in known)


def _fault(path: Path, header: Sequence[str], label: int, delimiter: str) -> str:
    """Return the first fault and its place; empty if none is found."""
    with _open(path) as file:
        rows = csv.reader(file, delimiter=delimiter)
        next(rows)
        for row in rows:
            if row and len(row) != len(header):
                return f"line {rows.line_num} has {len(row)} columns, expected {len(header)}"
            for k, text in enumerate(row):
                if k == label and not text.strip():
                    return f"line {rows.line_num} has no label in {header[k]!r}"
                if k != label and not _is_number(text):
                    return (
                        f"line {rows.line_num}, column {header[k]!r}: {text[:40]!r} is not a "
                        "finite number; encode categories as numbers, fill in missing values"
                    )
    return ""


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) <= LARGEST
    except ValueError:
        return False


def _open(path: Path) -> IO[str]:
    opener = _OPENERS.get(path.suffix.lower(), open)
    file: IO[str] = opener(path, "rt", encoding="utf-8-sig", newline="")
    return file
