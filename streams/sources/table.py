"""A user's own stream: a table in a file, learned in the order of its rows.

``.csv`` and ``.tsv``, also compressed (``.gz``, ``.bz2``, ``.xz``), begin with a header; all
columns but the label's hold numbers. ``.safetensors`` holds ``features`` and ``labels``,
as `streams.batch.Batch.to_bytes` writes them.
"""

import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path

from streams.batch import Batch, InvalidBatchError, check, decode
from streams.sources.catalog import Shift, Stream
from streams.sources.delimited import DelimitedFile
from streams.sources.faults import TableError as TableError
from streams.sources.labels import MAX_CLASSES, fraction, lookalikes, numbered

SHOWN_CLASSES = 20
SHOWN_LABELS = 3
FEW = 100
"""Labels that any column may have. If there are more, and the user has not named the column, each
must occur twice on average: an id is no label."""


@dataclass(frozen=True)
class Table:
    """Labelled examples from a file."""

    path: Path
    batch: Batch
    """All examples in the order of the file; features fp32 [n, d] if they were text."""
    label: str
    """Name of the label's column."""
    names: tuple[str, ...]
    """The labels' names by number, as they are written; empty if the labels were numbers from 0."""
    notes: tuple[str, ...] = ()
    """Facts of the file that the user may not expect, a sentence each."""

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
            self.path.name, width, self.classes, length, order, lambda *_: iter([self.batch]),
            self.names,
        )  # fmt: skip

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
    except (TableError, InvalidBatchError) as error:
        raise TableError(f"{path}: {error}") from error
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise TableError(f"{path} cannot be read; it is truncated or damaged: {error}") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path} begins as {error.encoding} text, and then: {error}") from error
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    raise TableError(f"{path}: a table ends in .csv, .tsv (.gz, .bz2, .xz) or .safetensors")


def _from_safetensors(path: Path) -> Table:
    batch = decode(path.read_bytes())
    try:
        check(batch, batch.features.shape[1], MAX_CLASSES)
    except InvalidBatchError as error:
        where = "" if error.index is None else f"example {error.index}: "
        raise TableError(f"{where}{error}") from error
    return Table(path, batch, "labels", ())


def _from_text(path: Path, label: str | None) -> Table:
    file = DelimitedFile(path, label)
    columns = file.read()
    texts, name = columns.texts, columns.label
    if (text := fraction(texts)) is not None:
        line = file.line(int((columns.codes == texts.index(text)).argmax()))
        raise TableError(
            f"line {line}: {text} in {name!r} is not a class: is it the label? (--label NAME)"
        )
    most = max(FEW, len(columns.codes) // 2) if label is None else MAX_CLASSES
    if not 1 < len(texts) <= min(MAX_CLASSES, most):
        raise TableError(
            f"{len(texts):,} different labels in {name!r} of {len(columns.codes):,} rows: is it "
            "the label? (--label NAME)"
        )
    alike = [" and ".join(map(repr, group)) for group in lookalikes(texts)]
    more = ", …" if len(alike) > SHOWN_LABELS else ""
    note = f"{', '.join(alike[:SHOWN_LABELS])}{more} in {name!r} are different classes"
    found = numbered(texts)
    batch = Batch(columns.features, found.numbers[columns.codes])
    return Table(path, batch, name, found.names, (*columns.notes, *([note] if alike else [])))
