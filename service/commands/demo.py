"""``funnel demo``: a service and a stream that shifts, to watch."""

import argparse
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from service.commands.options import add_settings, settings_of
from service.commands.stream_options import add_rate, add_stream, stream_of
from streams.environment import PREFIX, home
from streams.errors import FunnelError

DESCRIPTION = (
    "Start a log, a service and a stream of digits that turn from 90° to 0° to 45°, and show "
    "accuracy, scale and gains as they adapt: in the terminal, and on a page where you can turn "
    "the stream yourself. Everything is removed afterwards."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_stream(parser, name="abrupt", examples=30_000)
    add_rate(parser, 500.0)
    parser.add_argument("--plot", metavar="FILE", type=home, help="write the run as a picture")
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s")
    stream = stream_of(options)
    next(stream.batches(1))  # fetches the data that are missing before anything is started

    defaults: dict[str, Any] = {"features": stream.width, "classes": stream.classes}
    if f"{PREFIX}SHADOW" not in os.environ:
        defaults["shadow"] = "adagrad"

    from service.commands.demonstration.demonstration import run_demo

    try:
        folder = tempfile.TemporaryDirectory(prefix="funnel-demo-")
    except OSError as error:
        raise FunnelError(f"the demo cannot keep its files: {error}; set TMPDIR") from error
    with folder as scratch:
        settings = settings_of(options, data_dir=Path(scratch), **defaults)
        return run_demo(stream, options.rate, settings, options.plot)
