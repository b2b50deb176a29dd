"""Options of the commands that read files of rows, and their meaning."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.stream_options import stream_of
from streams.errors import FunnelError
from streams.sources.names import (
    ARROW,
    DELAYED_NAMES,
    LINED,
    NUMBER_NAMES,
    PARQUET,
    ROW_NAMES,
    STANDARD_INPUT,
)

if TYPE_CHECKING:
    from service.fold.schema.schema import Schema
    from streams.delays.delay import AnyDelay
    from streams.rowfile import RowFile
    from streams.rowstream import RowStream
    from streams.sources.catalog import Stream

KINDS = ("number", "category", "time", "text", "bool")


def add_rows(parser: argparse.ArgumentParser, kinds: bool = True) -> None:
    """Add the options of a file of rows, which `rows_of` and `kinds_of` read.

    Args:
        parser: where to.
        kinds: whether the kinds of columns can be chosen here, and not by a service.
    """
    group = parser.add_argument_group("rows with names")
    group.add_argument(
        "--drop",
        type=lambda text: tuple(name.strip() for name in text.split(",") if name.strip()),
        default=(),
        metavar="COLUMNS",
        help="columns to remove, with commas",
    )
    group.add_argument(
        "--weight",
        metavar="COLUMN",
        help="column of weights: how much each row counts when it is learned [1]",
    )
    if not kinds:
        parser.set_defaults(time=None, kind=[])
        return
    group.add_argument("--time", metavar="COLUMN", help="a column of times: --kind COLUMN=time")
    group.add_argument(
        "--kind",
        action="append",
        type=_kind,
        default=[],
        metavar="COLUMN=KIND",
        help=f"kind of a column, where the inferred one is wrong: {', '.join(KINDS)}; may be "
        "repeated",
    )


def _kind(text: str) -> tuple[str, str]:
    name, _, kind = text.rpartition("=")
    if not name or kind not in KINDS:
        raise argparse.ArgumentTypeError(f"must be COLUMN=KIND with one of {', '.join(KINDS)}")
    return name, kind


def kinds_of(options: argparse.Namespace) -> dict[str, str]:
    """Return the kinds of columns that the options name."""
    named = {options.time: "time"} if options.time else {}
    return named | dict(options.kind)


def has_row_options(options: argparse.Namespace) -> bool:
    """Return whether options ask for rows."""
    return bool(options.drop or options.weight or options.time or options.kind)


def rows_of(path: str, options: argparse.Namespace) -> "RowFile":
    """Return the rows of the file that the options name.

    Raises:
        streams.sources.faults.TableError: it cannot be read.
    """
    from streams import rowfile

    return rowfile.read(path, options.label, options.drop, options.weight)


def schema_of(stream: "RowStream", kinds: dict[str, str]) -> "Schema":
    """Return the schema of a whole stream.

    Args:
        stream: of rows.
        kinds: of columns, where the inferred ones are wrong.

    Raises:
        FunnelError: a column is not in the stream.
    """
    from service.fold.schema.kinds import Kind
    from service.fold.schema.schema import Schema
    from streams.rows.rows import join

    empty = Schema(label=stream.label, max_classes=max(1_000, len(stream.labels)))
    rows = join(list(stream.batches(stream.examples)))
    found = empty.after(empty.changes_for(rows))
    if unknown := [name for name in kinds if name not in found.index]:
        raise FunnelError(
            f"{stream.name} has no column {unknown[0]!r}, only {', '.join(found.index)}"
        )
    columns = tuple(
        replace(column, kind=Kind(kinds[column.name])) if column.name in kinds else column
        for column in found.columns
    )
    return replace(found, columns=columns, dense=(), version=0)


def source_of(options: argparse.Namespace, wants_rows: bool = False) -> "Stream | RowStream":
    """Return the stream that the options name, dense or of rows; print what a file holds.

    A file of numbers alone is a stream of dense features, unless rows are asked for.

    Args:
        options: of `service.commands.stream_options.add_stream` and `add_rows`.
        wants_rows: whether a file has to be one of rows.

    Raises:
        FunnelError: there is no such stream or file, or it cannot be read.
    """
    from streams.sources.faults import TableError

    if options.stream in (*ROW_NAMES, *DELAYED_NAMES, *NUMBER_NAMES):
        return _made(options)
    path, why = Path(options.stream), None
    is_file = options.stream == STANDARD_INPUT or path.exists()
    endings = {*map(str.lower, path.suffixes)}
    only_rows = not endings.isdisjoint((*LINED, *ARROW, *PARQUET))
    asks = wants_rows or has_row_options(options) or options.stream == STANDARD_INPUT
    if not is_file or not (asks or only_rows):
        try:
            return stream_of(options)
        except TableError as error:
            if not is_file or ".safetensors" in path.suffixes:
                raise
            why = error
    try:
        found = rows_of(options.stream, options)
    except TableError:
        if why is not None:
            raise why from None
        raise
    sys.stderr.write(f"{found}\n")
    if why is not None:
        sys.stderr.write(f"{found.name}: the rows keep their names, because {why}\n")
    return found.stream(options.examples)


def delay_of(options: argparse.Namespace, source: "Stream | RowStream") -> "AnyDelay | None":
    """Return when the labels of a stream come: as ``--delay`` says, otherwise as it was
    recorded.

    Args:
        options: of `service.commands.stream_options.add_delay`.
        source: that they name.
    """
    from streams.delays.delay import Recorded

    waits = getattr(source, "waits", None)
    if options.delay is not None or waits is None:
        found: AnyDelay | None = options.delay
        return found
    return Recorded(waits, "as recorded")


def _made(options: argparse.Namespace) -> "RowStream":
    """Return a stream of rows that is made while it is read, or that river carries.

    Raises:
        FunnelError: an option is for files.
    """
    from streams.made.named import named

    for name in ("label", "drop", "weight"):
        if getattr(options, name):
            raise FunnelError(f"--{name} is for a file, but {options.stream} is a stream")
    if options.stream in NUMBER_NAMES:
        from streams.rowfile import bundled

        return bundled(options.stream).stream(options.examples)
    if options.stream in DELAYED_NAMES:
        from streams import flights

        return flights.load().stream(options.examples)
    return named(options.stream, options.examples or options.usual_examples)
