"""``funnel compare``: the accuracy that Funnel and other learners reach on a stream."""

import argparse

from service.commands.options import add_settings, settings_of
from service.commands.stream_options import add_stream, positive_int, stream_of
from service.settings import SettingsError
from streams.environment import PREFIX, home
from streams.peers.peers import PEERS, QUICK, UnknownPeerError, find_peers
from streams.sources.names import EXAMPLES

DESCRIPTION = (
    "Learn a stream with the service's learner and with others, each batch predicted before it is "
    "learned, and show accuracy and recovery after shifts. Funnel runs with the settings below, or "
    "with its defaults. Each of the others runs with every setting of a grid, on inputs "
    "standardized as the service does, and is shown at the setting that was best on this stream in "
    "hindsight: an oracle that no user has."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_stream(parser, name=None, examples=EXAMPLES)
    parser.add_argument(
        "--peers",
        type=_names,
        default=QUICK,
        metavar="NAMES",
        help=f"other learners, with commas: {', '.join(PEERS)}; or all [{','.join(QUICK)}]",
    )
    parser.add_argument(
        "--seeds", type=positive_int, default=1, metavar="N", help="number of seeds, from 0 [1]"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=home, help="write the rolling accuracies as a picture"
    )
    add_settings(parser, ("model", "optimizer", "computing"))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        find_peers(names)
    except UnknownPeerError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


def run(options: argparse.Namespace) -> int:
    """Compare, and print the table; return the exit status."""
    stream = stream_of(options)
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
