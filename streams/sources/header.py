"""The header of text with delimiters: the delimiter, and the meaning of the columns."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import NamedTuple

from streams.sources.faults import MISSING, TableError, name_fault, number_fault
from streams.sources.records import records

LABEL = "label"
"""Name of the label's column; without a column of that name, the last one is taken."""
USUAL_LABELS = frozenset((LABEL, "labels", "class", "target", "y"))
DELIMITERS = ",;\t|"
SEPARATOR = re.compile(rf'"?sep=([{DELIMITERS}])"?\s*', re.IGNORECASE)
PARTS = re.compile(f"[{DELIMITERS}]")
COUNTED = 3
"""As many names that count the columns are hardly a row of data."""
UNNAMED = re.compile(r"(Unnamed: \d+)?")
"""No name, or what pandas writes for it."""
SHOWN = 20
"""Columns that a message names."""


@dataclass(frozen=True)
class Header:
    """The columns of a file.

    Columns without names at its edges hold no features. Columns at the beginning are an index, as
    pandas writes one. The columns at the end are empty, where each line ends in a delimiter.
    """

    names: tuple[str, ...]
    """The names of all columns; empty for one that has none."""
    delimiter: str
    lines: int
    """Lines of the file up to the end of the header."""
    label: int
    """Index of the label's column."""
    first: int
    """Index of the first column that is no index."""
    end: int
    """Index after the last column that may hold something."""
    may_be_data: bool
    """Most of the names are numbers: the line is data if its label occurs in other lines."""

    @property
    def features(self) -> tuple[int, ...]:
        """Indices of the columns that hold features."""
        return tuple(k for k in range(self.first, self.end) if k != self.label)

    @property
    def repeated(self) -> tuple[str, ...]:
        """Names that more than one column has."""
        found = Counter(self.names[self.first : self.end])
        return tuple(name for name, times in found.items() if times > 1)

    def column(self, index: int) -> str:
        """Return what a message calls a column."""
        name = self.names[index]
        return f"column {name!r}" if name else f"column {index + 1} (no name)"


def find_header(lines: Sequence[str], label: str | None = None, preferred: str = "") -> Header:
    """Return the header of a file.

    Args:
        lines: the first lines.
        label: name of the label's column; by default LABEL, otherwise the last that has a name.
        preferred: delimiter to take if it occurs.

    Raises:
        TableError: the header is missing, or is not clear.
    """
    delimiter, names, count = split(lines, preferred)
    if fault := next(filter(None, map(name_fault, names)), ""):
        raise TableError(f"line {count}: {fault}")
    first, end = _edges(names)
    if first < end:
        wanted = label if label is not None else LABEL if LABEL in names else names[end - 1]
        if not wanted or names.count(wanted) != 1:
            many = "several columns" if wanted and wanted in names else "no column"
            shown = ", ".join(filter(None, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")
            raise TableError(f"the table has {many} {wanted!r}; its columns are {shown}")
        own = names.index(wanted)
        first, end = min(first, own), max(end, own + 1)
    if end - first < 2:
        raise TableError(_too_few(lines))
    if "" in names[first:end]:
        raise TableError(f"column {names.index('', first) + 1} has no name in the header")
    is_counted = may_be_data(names[first:end])
    if is_counted and not _counts(names[first:end], own - first, label is not None):
        raise TableError(
            "the file begins with data; its first line must name the columns (if it does, name "
            "them in words, or give the label's with --label NAME)"
        )
    return Header(tuple(names), delimiter, count, own, first, end, is_counted)


class Split(NamedTuple):
    """The header as one delimiter parts it."""

    delimiter: str
    names: list[str]
    lines: int


def split(lines: Sequence[str], preferred: str = "", fewest: int = 2) -> Split:
    """Return the header by the delimiter that parts it, and the first row, into most columns.

    A first line ``sep=;``, as Excel reads and writes it, names the delimiter and is skipped.

    Args:
        lines: the first lines.
        preferred: delimiter to take if it occurs.
        fewest: columns that there must be, 1 or 2.

    Raises:
        TableError: there is no such header, a comment is in its place, or two delimiters do equally
            well.
    """
    named = SEPARATOR.fullmatch(lines[0]) if lines else None
    skipped = 1 if named else 0
    _refuse_comment(lines[skipped : skipped + 2])
    found: dict[tuple[bool, bool, int], list[Split]] = {}
    narrow: list[Split] = []
    faults: list[TableError] = []
    delimiters = named[1] if named else DELIMITERS
    for delimiter in delimiters:
        rest = iter(lines)
        rows = records(islice(rest, skipped, None), delimiter, skipped + 1)
        try:
            _, cells = next(rows, (0, []))
        except TableError as error:
            faults.append(error)
            continue
        own = Split(delimiter, [*map(str.strip, cells)], len(lines) - length_hint(rest))
        try:
            _, row = next(rows, (0, []))
        except TableError:
            row = []
        rank = (delimiter == preferred, len(row) == len(cells), len(cells))
        if len(cells) > 1:
            found.setdefault(rank, []).append(own)
        elif cells and fewest == 1:
            narrow.append(own)
    if narrow and not found:
        return narrow[0]
    if not found:
        raise faults[0] if len(faults) == len(delimiters) else TableError(_too_few(lines))
    best, *others = found[max(found)]
    if others:
        raise TableError(
            f"both {best.delimiter!r} and {others[0].delimiter!r} part the header into "
            f"{len(best.names)} columns; put names that contain one into quotes"
        )
    return best


def _refuse_comment(lines: Sequence[str]) -> None:
    """Refuse a comment where the header should be; ``#`` may begin the name of a column.

    Raises:
        TableError: the first of the lines is one.
    """
    first, *rest = lines or [""]
    is_alone = not PARTS.search(first) and any(map(PARTS.search, rest))
    if first.startswith(("# ", "##", "#!")) or (first.startswith("#") and is_alone):
        raise TableError(
            f"the file begins with a comment, {first.strip()[:80]!r}; its first line must name the "
            "columns: remove the lines with '#' before it, and a '#' before the names"
        )


def _too_few(lines: Sequence[str]) -> str:
    line = next((line.strip() for line in lines if line.strip()), "")
    return f"the table needs a header of two columns or more, got {line[:200]!r}"


def _edges(names: Sequence[str]) -> tuple[int, int]:
    """Return the index of the first column with a name, and the index after the last."""
    named = [k for k, name in enumerate(names) if not UNNAMED.fullmatch(name)]
    return (named[0], named[-1] + 1) if named else (0, 0)


def may_be_data(names: Sequence[str]) -> bool:
    """Return whether all names but one at most are numbers, or stand for missing ones."""
    numbers = sum(name in MISSING or not number_fault(name) for name in names)
    return numbers >= max(1, len(names) - 1)


def _counts(names: Sequence[str], label: int, is_given: bool) -> bool:
    """Return whether names count the columns, as those of pandas do, and leave no doubt of it."""
    numbers = [name for k, name in enumerate(names) if k != label]
    is_clear = is_given or len(numbers) >= COUNTED or names[label].lower() in USUAL_LABELS
    return is_clear and (is_given or bool(number_fault(names[label]))) and counts(numbers)


def counts(names: Sequence[str]) -> bool:
    """Return whether names count the columns, from 0 or 1."""
    return list(names) in ([str(k) for k in range(start, start + len(names))] for start in (0, 1))
