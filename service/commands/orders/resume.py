"""``funnel resume``: let a service go on learning after a pause."""

import argparse

from service.commands.orders.pause import order
from service.commands.remote import KEYS, add_to

DESCRIPTION = (
    "Go on learning after funnel pause, with the examples that have come meanwhile. With keys, "
    + KEYS["api"]
    + "."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_to(parser)


def run(options: argparse.Namespace) -> int:
    """Resume learning; return the exit status."""
    return order(options.to, "resume", "learning goes on")
