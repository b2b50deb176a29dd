"""``funnel pause``: let a service learn nothing for a while."""

import argparse
import sys
from contextlib import closing

from service.commands.remote import KEYS, Service, add_to, checked, key

DESCRIPTION = (
    "Pause learning: predictions are served and examples accepted, and none is learned until "
    "funnel resume, also after a restart. With keys, " + KEYS["api"] + "."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_to(parser)


def run(options: argparse.Namespace) -> int:
    """Pause learning; return the exit status."""
    return order(options.to, "pause", "learning is paused")


def order(url: str, name: str, done: str, content: bytes = b"") -> int:
    """Give a command to a service, print that it is recorded, and return the exit status.

    Args:
        url: of the service.
        name: of the command.
        done: the line that is printed.
        content: of the request, as JSON.
    """
    with closing(Service(url, key("API"))) as service:
        cut = checked(service.post(f"/{name}", content, "application/json")).json()["cut"]
    sys.stdout.write(f"{done}, as cut {cut} records\n")
    return 0
