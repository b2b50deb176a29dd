"""``funnel skip``: rebuild the model of a service without some examples."""

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime

from service.commands.orders.rebuilding import ask
from service.commands.remote import KEYS, add_to
from streams.errors import FunnelError

DESCRIPTION = (
    "Rebuild the model of a running service without some examples: named entries of the log, or "
    "those of a source in some time. All others stay learned, also those after them. It shows what "
    "it would do, and asks. With keys, " + KEYS["api"] + "."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "entries", nargs="*", metavar="ENTRY", help="id of an entry, as 1767225600000-0"
    )
    parser.add_argument(
        "--source", default="", metavar="NAME",
        help="field source of the entries: http, or the name that a producer gives [any]",
    )  # fmt: skip
    parser.add_argument(
        "--since", type=_time, metavar="TIME",
        help="begin of the time in which the log got them, as 2026-05-01T03:00Z [no time]",
    )  # fmt: skip
    parser.add_argument(
        "--until", type=_time, metavar="TIME", help="end of that time, which is without it [now]"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask [it asks]")
    add_to(parser)


def run(options: argparse.Namespace) -> int:
    """Skip the examples; return the exit status.

    Raises:
        FunnelError: neither entries nor a time are given, or the service refuses.
    """
    if bool(options.entries) == (options.since is not None):
        raise FunnelError("give ids of entries, or --since with a time")
    wanted: Mapping[str, object] = {"entries": options.entries}
    if options.since is not None:
        until = options.until if options.until is not None else datetime.now(UTC).timestamp()
        wanted = {"source": options.source, "since": options.since, "until": until}
    return ask(options.to, "skip", wanted, options.yes)


def _time(text: str) -> float:
    """Return the Unix time of a text, as a type of argparse; without a zone it is local."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"give a time, as 2026-05-01T03:00Z, not {text!r}"
        ) from error
