"""Options that several commands share, and what they mean."""

import argparse
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from service.settings import Settings, load_settings
from streams.sources import table
from streams.sources.catalog import NAMES, SOURCES, Stream, UnknownStreamError, get


def add_stream(parser: argparse.ArgumentParser, name: str | None, examples: int) -> None:
    """Give the parser the options of a stream; see `stream_of`."""
    parser.add_argument(
        "stream",
        nargs="?" if name else None,
        default=name,
        metavar="STREAM",
        help=f"one of {', '.join(NAMES)}; or a file of your own, its rows in order of time: .csv "
        "or .tsv (.gz, .bz2, .xz) with a header and numbers in all columns but the label's, or "
        ".safetensors" + (f" [{name}]" if name else ""),
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
        help=f"of a file, the column of the classes [{table.LABEL}, or else the last]",
    )
    parser.add_argument(
        "--source",
        choices=sorted(SOURCES),
        default="mnist",
        help="images: mnist, or scikit-learn's small digits where MNIST cannot be had [mnist]",
    )
    parser.set_defaults(usual_examples=examples)


def stream_of(options: argparse.Namespace) -> Stream:
    """Return the stream that the options name; say what a file holds.

    Raises:
        UnknownStreamError: there is neither such a stream nor such a file.
        ValueError: a label is given for what is no file.
        streams.table.TableError, OSError: the file cannot be learned.
    """
    if options.stream in NAMES:
        if options.label is not None:
            raise ValueError(f"--label is for a file, and {options.stream} is a stream")
        return get(options.stream, options.examples or options.usual_examples, options.source)
    path = Path(options.stream)
    if not path.exists():
        raise UnknownStreamError(
            f"no stream and no file {options.stream!r}; there are {', '.join(NAMES)}"
        )
    found = table.read(path, options.label)
    sys.stderr.write(f"{found}\n")
    return found.stream(options.examples)


def add_rate(parser: argparse.ArgumentParser, rate: float | None) -> None:
    """Give the parser the option ``--rate``."""
    parser.add_argument(
        "--rate",
        type=_positive,
        default=rate,
        metavar="N",
        help=f"examples a second [{f'{rate:g}' if rate else 'as fast as they are taken'}]",
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def positive_int(text: str) -> int:
    """Return a whole number from 1 on, as a type of argparse.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return value


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Give the parser an option for every setting."""
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        shown = _shown(default) or "none"
        is_flag = isinstance(default, bool)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"setting_{name}",
            nargs="?" if is_flag else None,
            const="true" if is_flag else None,
            metavar="BOOL" if is_flag else name.rpartition("_")[2].upper(),
            help=f"{field.description} [{shown}]".replace("%", "%%"),
        )


def _shown(default: Any) -> str:
    if isinstance(default, SecretStr):
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def settings_of(options: argparse.Namespace, **defaults: Any) -> Settings:
    """Return the settings that the options give; ``defaults`` hold where they give none."""
    given = {
        name: value
        for name in Settings.model_fields
        if (value := getattr(options, f"setting_{name}", None)) is not None
    }
    settings = load_settings(defaults | given)
    if idle := settings.without_effect:
        sys.stderr.write(
            f"funnel: {', '.join(idle)} without effect: model {settings.model} with optimizer "
            f"{settings.optimizer} has none\n"
        )
    return settings
