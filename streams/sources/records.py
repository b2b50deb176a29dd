"""Records of text with delimiters, read strictly, each with the line where it begins."""

import csv
from collections.abc import Iterable, Iterator

from streams.sources.faults import TableError

Record = tuple[int, list[str]]
"""Number of the first line, from 1, and the cells."""


def records(lines: Iterable[str], delimiter: str, line: int = 1) -> Iterator[Record]:
    """Yield the records that are not blank, by RFC 4180; spaces before a cell are dropped.

    Args:
        lines: with their ends.
        delimiter: one character.
        line: number of the first of the lines.

    Raises:
        TableError: a quote is never closed, or text follows it; the message names the line.
    """
    held: list[str] = []
    found = csv.reader(_kept(lines, held), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for cells in found:
            if len(cells) > 1 or any(map(str.strip, cells)):
                yield line, cells
            line += len(held)
            held.clear()
    except csv.Error as error:
        raise TableError(_fault(held, line, str(error))) from error


def _kept(lines: Iterable[str], held: list[str]) -> Iterator[str]:
    for line in lines:
        held.append(line)
        yield line


def _fault(held: list[str], line: int, error: str) -> str:
    """Return what is wrong with the lines of a record that cannot be read.

    Args:
        held: the lines of the record so far.
        line: number of the first.
        error: the reader's.
    """
    opening, is_open = line, False
    for number, text in enumerate(held, line):
        if text.count('"') % 2:
            opening, is_open = (opening if is_open else number), not is_open
    last = line + len(held) - 1
    if "expected after" not in error:
        if is_open:
            return f"line {opening}: a quote that begins here is never closed"
        return f"line {line}: {error}"
    from_line = f", which may begin in line {line}" if last > line else ""
    return (
        f"line {last}: text follows a closing quote{from_line}; close each quote at the end of its "
        'cell, and write a quote within one as ""'
    )
