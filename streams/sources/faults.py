"""Faults of a table of labelled examples: what is wrong with a cell, and what to do."""

import contextlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from streams.errors import FunnelError

LARGEST = float(np.finfo(np.float32).max)
MISSING = frozenset({
    "",
    # those of pandas.read_csv and pyarrow.csv
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
    # other cases, and those of databases, spreadsheets, SAS and the data sets of UCI
    "+NaN", "+nan", "NAN", "NaT", "Nan", "Null", "n.a.", "na", "N.A.", "(null)", "<null>", "\\N",
    "?", "??", ".", "..", "-", "--", "---", "–", "—",
    "#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!",
})  # fmt: skip
"""Spellings of a value that is not there."""
SHOWN = 40
"""Characters of a cell that a message shows."""

_HINTS: tuple[tuple[str, str], ...] = (
    (r"(?i)true|false|t|f|yes|no|y|n", "write 1 and 0"),
    (
        r"[+-]?\d{1,3}([,.'\s]\d{3})+([.,]\d+)?|[+-]?\d+,\d+([eE][+-]?\d+)?",
        "write a decimal point, and no thousands separators",
    ),
    (
        r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*|\d{1,2}:\d\d.*",
        "write a time as a number, for example in seconds since the first row, or remove the "
        "column",
    ),
    (r"(?i)[+-]?0x[0-9a-f]+", "write it in decimal digits"),
    (r"(?i)[+-]?inf(inity)?", "replace it, or remove the row"),
    (r"(?s).*[\r\n].*", "is a quote not closed?"),
)
_ELSE = "encode categories as numbers, or remove the column"


class TableError(FunnelError, ValueError):
    """A file is not a table of labelled examples; the message says where, and what to do."""


def number_fault(text: str) -> str:
    """Return why a cell is not a feature, and what to do; empty if it is one.

    A feature is a decimal number in ASCII that float32 can hold, with nothing but spaces around it.

    >>> number_fault("1,5")
    "'1,5' is not a finite number; write a decimal point, and no thousands separators"
    >>> number_fault(" -1e3")
    ''
    """
    if fault := encoding_fault(text):
        return fault
    bare = text.strip()
    if bare in MISSING:
        return f"{_shown(text)} is not a finite number; fill in the value, or remove the row"
    if re.fullmatch(r"[0-9.eE+-]+", bare):
        with contextlib.suppress(ValueError):
            if abs(float(bare)) <= LARGEST:
                return ""
            return f"{_shown(text)} is beyond float32, at most {LARGEST:.2g}; rescale the column"
    hint = next((hint for form, hint in _HINTS if re.fullmatch(form, bare)), _ELSE)
    return f"{_shown(text)} is not a finite number; {hint}"


def label_fault(text: str) -> str:
    """Return why a cell without spaces around it is not a label, and what to do; empty if it is.

    A minus sign is accepted: it is a label if another one is a plus sign, which the caller knows.
    """
    if not text:
        return "the label is missing; fill it in, or remove the row"
    if text in MISSING and text != "-":
        return missing_label(text)
    if any(unicodedata.category(letter) == "Cc" or letter == "\ufeff" for letter in text):
        return f"{_shown(text)} has a line break or a control character; is a quote not closed?"
    return name_fault(text)


def width_fault(cells: Sequence[str], width: int) -> str:
    """Return why a row does not have ``width`` cells, and what to do; empty if it does."""
    if len(cells) == width:
        return ""
    hint = ""
    if cells[0].startswith("#"):
        hint = "; remove comments"
    elif len(cells) == width + 1 and not cells[-1].strip():
        hint = "; the line ends in a delimiter, the header does not"
    return f"has {len(cells)} columns, expected {width}{hint}"


def missing_label(text: str) -> str:
    """Return the fault of a label that stands for a missing one."""
    return (
        f"{text!r} stands for a missing label; remove the row, or write another word if it is a "
        "class"
    )


def name_fault(text: str) -> str:
    """Return why a text cannot name a class or a column, and what to do; empty if it can."""
    if fault := encoding_fault(text):
        return fault
    if text[:1] == '"' or text[-1:] == '"':
        return f"{_shown(text)} has a quote at its edge; quote cells as a whole, or not at all"
    return ""


def encoding_fault(text: str) -> str:
    """Return the byte that is not UTF-8, and what to do; empty if there is none.

    Args:
        text: decoded with the error handler ``surrogateescape``.
    """
    for letter in text:
        if "\udc80" <= letter <= "\udcff":
            byte = ord(letter) - 0xDC00
            return (
                f"{_shown(text)} has the byte 0x{byte:02x}, which is not UTF-8; save the file as "
                "UTF-8"
            )
    return ""


def _shown(text: str) -> str:
    """Return the beginning of a cell for a message."""
    readable = text[:SHOWN].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return repr(readable)
