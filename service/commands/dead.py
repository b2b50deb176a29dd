"""``funnel dead``: entries and batches that a service did not learn, and why."""

import argparse
import sys
from contextlib import closing
from datetime import UTC, datetime

from service.commands.remote import KEYS, Service, add_to, checked, key
from service.commands.stream_options import positive_int

DESCRIPTION = (
    "List the newest entries of the log that the service could not read, and batches that it "
    "skipped, each with its reason; the newest first. With --json, one object a line. With keys, "
    + KEYS["api"]
    + "."
)
MOST = 1_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_to(parser)
    parser.add_argument(
        "--count", type=positive_int, default=20, metavar="N", help=f"most letters, to {MOST} [20]"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(options: argparse.Namespace) -> int:
    """List the dead letters; return the exit status."""
    import orjson

    with closing(Service(options.to, key("API"))) as service:
        answer = checked(service.get("/dead", {"count": min(options.count, MOST)})).json()
    for letter in answer["letters"]:
        if options.json:
            sys.stdout.write(orjson.dumps(letter).decode() + "\n")
            continue
        at = datetime.fromtimestamp(letter["time"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        what = f"entry {letter['begin']}"
        if letter["examples"] is not None:
            what = f"{letter['examples']:,} examples from {letter['begin']} to {letter['end']}"
        sys.stdout.write(f"{at}  {what}: {letter['reason']}\n")
    if not answer["letters"] and not options.json:
        sys.stdout.write("no dead letters\n")
    return 0
