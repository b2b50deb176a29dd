"""``funnel data``: fetch a data set before it is needed."""

import argparse
import sys

DESCRIPTION = "Fetch a data set, unless it is here already, and print where it is."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("set", choices=["mnist", "flights"], help="name of the data set")


def run(options: argparse.Namespace) -> int:
    """Fetch the data set; return the exit status."""
    if options.set == "flights":
        from streams import flights
        from streams.sources.cache import folder_of

        count = len(flights.load().departs)
        sys.stdout.write(f"{folder_of(flights.NAME)}: {count:,} flights\n")
        return 0

    from streams.sources import mnist

    found = mnist.load()
    sys.stdout.write(
        f"{mnist.cache_directory()}: {len(found.train_images)} images to train, "
        f"{len(found.test_images)} to test\n"
    )
    return 0
