"""``funnel rollback``: let the model of a service go back to a version."""

import argparse

from service.commands.orders.rebuilding import ask
from service.commands.remote import KEYS, add_to
from service.commands.stream_options import positive_int

DESCRIPTION = (
    "Let the model of a running service go back to an earlier version, and on from the present end "
    "of its log: what it has learned since is not learned again. It shows what it would do, and "
    "asks. With keys, " + KEYS["api"] + "."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "version", type=positive_int, metavar="VERSION", help="model_version to go back to"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask [it asks]")
    add_to(parser)


def run(options: argparse.Namespace) -> int:
    """Go back; return the exit status.

    Raises:
        FunnelError: the service refuses.
    """
    return ask(options.to, "rollback", {"version": options.version}, options.yes)
