"""``funnel compare``: the accuracy that Funnel and other learners reach on a stream."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from service.commands.options import add_settings, settings_of
from service.commands.row_options import add_rows, kinds_of, schema_of, source_of
from service.commands.stream_options import add_stream, positive_int
from service.fold.task import AUTO
from service.settings import SettingsError
from streams.environment import PREFIX, home
from streams.errors import FunnelError
from streams.peers.peers import PEERS, QUICK, UnknownPeerError, find_peers
from streams.peers.row_peers import ROW_PEERS
from streams.sources.names import EXAMPLES

if TYPE_CHECKING:
    from streams.rowstream import RowStream

DESCRIPTION = (
    "Learn a stream with the service's learner and with others, each batch predicted before it is "
    "learned, and show accuracy and recovery after shifts. Funnel runs with the settings below, or "
    "with its defaults. Each of the others runs with every setting of a grid, on inputs "
    "standardized as the service does, and is shown at the setting that was best on this stream in "
    "hindsight: an oracle that no user has. A file with strings, missing values or times is "
    "learned as rows with names."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_stream(parser, name=None, examples=EXAMPLES)
    parser.add_argument(
        "--peers",
        type=_names,
        default=QUICK,
        metavar="NAMES",
        help=f"other learners, with commas: {', '.join(PEERS)}; on rows {', '.join(ROW_PEERS)}; or "
        f"all [{','.join(QUICK)}; on rows the quick ones]",
    )
    parser.add_argument(
        "--seeds", type=positive_int, default=1, metavar="N", help="number of seeds, from 0 [1]"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=home, help="write the rolling accuracies as a picture"
    )
    add_rows(parser)
    add_settings(parser, ("model", "optimizer", "computing"))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        find_peers([name for name in names if name not in ROW_PEERS])
    except UnknownPeerError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


def run(options: argparse.Namespace) -> int:
    """Compare, and print the table; return the exit status."""
    from streams.sources.catalog import Stream

    stream = source_of(options)
    if not isinstance(stream, Stream):
        return _compare_rows(stream, options)
    settings = settings_of(options, features=stream.width, classes=stream.classes)
    for name, theirs in (("features", stream.width), ("classes", stream.classes)):
        if (mine := getattr(settings, name)) != theirs:
            raise SettingsError(
                f"{PREFIX}{name.upper()} is {mine}, but the stream {stream.name} has {theirs} "
                f"{name}; do not set it here"
            )

    from service.commands import comparison

    peers = find_peers(options.peers)
    return comparison.run(stream, settings, peers, range(options.seeds), options.plot)


def _compare_rows(stream: "RowStream", options: argparse.Namespace) -> int:
    """Compare on rows with names."""
    if options.plot:
        raise FunnelError("--plot draws streams of dense features alone; it cannot draw rows")
    settings = settings_of(options, schema=AUTO)

    from service.commands import row_comparison
    from service.fold.schema.schema import Schema
    from streams.peers.row_peers import QUICK as QUICK_ROWS
    from streams.peers.row_peers import find_row_peers

    names = QUICK_ROWS if options.peers is QUICK else options.peers
    peers, skipped = find_row_peers(names)
    kinds = kinds_of(options)
    schema = (
        replace(schema_of(stream, kinds), labels=())
        if kinds
        else Schema(max_classes=max(settings.max_classes, len(stream.labels)))
    )
    return row_comparison.run(stream, settings, schema, peers, skipped, range(options.seeds))
