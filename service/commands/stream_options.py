"""Options of the commands that read a stream, and their meaning."""

import argparse
import contextlib
import difflib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import FunnelError
from streams.sources.names import (
    DELAYED_NAMES,
    IMAGES,
    NAMES,
    NUMBER_NAMES,
    ROW_NAMES,
    WHICH_IS_THERE,
)

if TYPE_CHECKING:
    from streams.delays.delay import Delay
    from streams.sources.catalog import Stream

_ALL = (*NAMES, *ROW_NAMES, *DELAYED_NAMES, *NUMBER_NAMES)


def add_stream(
    parser: argparse.ArgumentParser, name: str | None, examples: int, is_endless: bool = False
) -> None:
    """Add the options of a stream, which `stream_of` reads.

    Args:
        parser: where to.
        name: stream that is taken if none is named; None if one must be.
        examples: length of a stream that has none if none is given.
        is_endless: whether streams that are made go on without an end instead.
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
        help=f"length of the stream [{'endless' if is_endless else examples}, or all of a file]",
    )
    parser.add_argument(
        "--label",
        metavar="COLUMN",
        help="column of the classes in a file [label if there is one, otherwise the last]",
    )
    parser.add_argument(
        "--source",
        choices=(WHICH_IS_THERE, *IMAGES),
        default="mnist",
        help="images: mnist; scikit-learn's small digits; or auto: mnist, and the digits where it "
        f"cannot be fetched [{WHICH_IS_THERE if is_endless else 'mnist'}]",
    )
    if is_endless:
        parser.set_defaults(source=WHICH_IS_THERE)
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
        is_of_images = options.stream in catalog.IMAGE_STREAMS
        source = source_of_images(options.source) if is_of_images else "mnist"
        return catalog.get(options.stream, options.examples or options.usual_examples, source)
    path = Path(options.stream)
    if not path.exists():
        close = difflib.get_close_matches(options.stream, _ALL, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise catalog.UnknownStreamError(
            f"no stream and no file {options.stream!r}{hint}; there are {', '.join(_ALL)}"
        )
    found = table.read(path, options.label)
    sys.stderr.write(f"{found}\n")
    for note in found.notes:
        sys.stderr.write(f"{path.name}: {note}\n")
    return found.stream(options.examples)


def source_of_images(name: str) -> str:
    """Return a source of images; of `WHICH_IS_THERE`, the one that is, with a notice of digits."""
    if name != WHICH_IS_THERE:
        return name

    from streams.environment import PathError
    from streams.sources import mnist

    try:
        mnist.load()
    except (mnist.DataUnavailableError, PathError) as error:
        sys.stderr.write(
            f"{error}\nScikit-learn's small digits take MNIST's place; accuracy on them says "
            "nothing about MNIST.\n"
        )
        return "digits"
    return "mnist"


def add_rate(parser: argparse.ArgumentParser, rate: float | None) -> None:
    """Add the option ``--rate``, in examples a second; None sends as fast as they are taken."""
    parser.add_argument(
        "--rate",
        type=_positive,
        default=rate,
        metavar="N",
        help=f"examples a second [{f'{rate:g}' if rate else 'as fast as they are taken'}]",
    )


def add_delay(parser: argparse.ArgumentParser, has_clock: bool) -> None:
    """Add the option ``--delay``, which becomes a `streams.delays.delay.Delay` or None.

    Args:
        parser: where to.
        has_clock: whether a delay may be a time, and not only a number of examples.
    """
    times, drawn = (", 30s (also ms, m, h, d)", "30s") if has_clock else ("", "500")
    parser.add_argument(
        "--delay",
        type=partial(_delay, has_clock),
        metavar="WHEN",
        help=f"when labels come: 500 (examples later){times}, exp:{drawn} (drawn for each, with "
        "this mean), never, or by label: yes=500,no=never,exp:200, where the last part is for all "
        "others [at once]",
    )


def _delay(has_clock: bool, text: str) -> "Delay":
    from streams.delays.delay import Delay, DelayError

    try:
        found = Delay.parse(text)
    except DelayError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if found.in_seconds and not has_clock:
        message = f"{text!r} is a time, and no time passes here: give a number of examples"
        raise argparse.ArgumentTypeError(message)
    return found


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
