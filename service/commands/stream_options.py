"""Options of the commands that read a stream, and their meaning."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import FunnelError
from streams.sources.names import IMAGES, NAMES, NUMBER_NAMES, ROW_NAMES

if TYPE_CHECKING:
    from streams.sources.catalog import Stream

_ALL = (*NAMES, *ROW_NAMES, *NUMBER_NAMES)


def add_stream(parser: argparse.ArgumentParser, name: str | None, examples: int) -> None:
    """Add the options of a stream, which `stream_of` reads.

    Args:
        parser: where to.
        name: stream that is taken if none is named; None if one must be.
        examples: length of the stream if none is given.
    """
    parser.add_argument(
        "stream",
        nargs="?" if name else None,
        default=name,
        metavar="STREAM",
        help=f"one of {', '.join(_ALL)}; or a file of your own, its rows in order of time: "
        ".csv or .tsv (.gz, .bz2, .xz) with a header and numbers in all columns but "
        "the label's, or .safetensors" + (f" [{name}]" if name else ""),
    )
    parser.add_argument(
        "--examples",
        type=positive_int,
        metavar="N",
        help=f"length of the stream [{examples}, or all of a file]",
    )
    parser.add_argument(
        "--label",
        metavar="COLUMN",
        help="column of the classes in a file [label if there is one, otherwise the last]",
    )
    parser.add_argument(
        "--source",
        choices=IMAGES,
        default="mnist",
        help="images: mnist, or scikit-learn's small digits where MNIST cannot be fetched [mnist]",
    )
    parser.set_defaults(usual_examples=examples)


def stream_of(options: argparse.Namespace) -> "Stream":
    """Return the stream that the options name; print what a file holds.

    Raises:
        UnknownStreamError: there is neither such a stream nor such a file.
        FunnelError: a label's column is given for a stream that is not a file.
        streams.sources.table.TableError: the file cannot be read or learned.
    """
    from streams.sources import catalog, table

    if options.stream in NAMES:
        if options.label is not None:
            raise FunnelError(f"--label is for a file, but {options.stream} is a stream")
        return catalog.get(
            options.stream, options.examples or options.usual_examples, options.source
        )
    path = Path(options.stream)
    if not path.exists():
        raise catalog.UnknownStreamError(
            f"no stream and no file {options.stream!r}; there are {', '.join(_ALL)}"
        )
    found = table.read(path, options.label)
    sys.stderr.write(f"{found}\n")
    for note in found.notes:
        sys.stderr.write(f"{path.name}: {note}\n")
    return found.stream(options.examples)


def add_rate(parser: argparse.ArgumentParser, rate: float | None) -> None:
    """Add the option ``--rate``, in examples a second; None sends as fast as they are taken."""
    parser.add_argument(
        "--rate",
        type=_positive,
        default=rate,
        metavar="N",
        help=f"examples a second [{f'{rate:g}' if rate else 'as fast as they are taken'}]",
    )


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (value := float(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")


def positive_int(text: str) -> int:
    """Return a whole number of at least 1, as a type of argparse.

    Raises:
        argparse.ArgumentTypeError: the text is not one.
    """
    with contextlib.suppress(ValueError):
        if (value := int(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
