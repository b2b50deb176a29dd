"""``funnel promote``: let a shadow answer predictions."""

import argparse
import json

from service.commands.orders.pause import order
from service.commands.remote import KEYS, add_to

DESCRIPTION = (
    "Let a shadow answer predictions from now on, in place of the learner that does, which becomes "
    "a shadow. All learners go on learning. It stays so after a restart; funnel promote original "
    "goes back to the learner with which the model began. funnel status lists the shadows and "
    "their accuracy. With keys, " + KEYS["api"] + "."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "learner", metavar="LEARNER", help="name of a shadow, as adagrad or adam:0.003; or original"
    )
    add_to(parser)


def run(options: argparse.Namespace) -> int:
    """Promote the learner; return the exit status."""
    content = json.dumps({"learner": options.learner}).encode()
    return order(options.to, "promote", f"{options.learner} answers predictions", content)
