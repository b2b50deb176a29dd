"""``funnel demo``: a service and a stream that shifts, to watch."""

import argparse
import errno
import logging
import os
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.commands.options import add_settings, settings_of
from service.commands.row_options import (
    add_rows,
    delay_of,
    has_row_options,
    kinds_of,
    schema_of,
    source_of,
)
from service.commands.stream_options import add_delay, add_rate, add_stream, source_of_images
from service.fold.task import AUTO
from service.settings import Settings
from streams.environment import PREFIX, home
from streams.errors import FunnelError
from streams.sources.names import ENDLESS, NAMES

if TYPE_CHECKING:
    from streams.rowstream import RowStream
    from streams.sources.catalog import Stream

DESCRIPTION = (
    "Start a log, a service and a stream of digits that turn every 20 seconds, and show the "
    "accuracy of Funnel and of AdaGrad, scale and gains as they adapt: in the terminal, and on a "
    "page where you can turn the stream yourself. It goes on until Ctrl-C, or for --examples; then "
    "a table shows how soon each learner recovered. With another stream, or a file of your own, "
    "also one of rows with names, the service learns that. Everything is removed afterwards."
)
TURN_SECONDS = 20
"""Time between the turns of the digits."""
USUAL_EXAMPLES = 1_000_000_000
"""Length of streams of rows that go on without an end."""

NOT_OF_A_DEMO = (
    "name", "features", "classes", "drift_webhook", "drift_webhook_file", "drift_webhook_secret",
    "drift_webhook_secret_file", "drift_webhook_form",
)  # fmt: skip
"""Settings that the stream decides, or that nobody receives."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_stream(parser, name="abrupt", examples=30_000, is_endless=True)
    parser.add_argument("--data", metavar="STREAM", help="the same as STREAM [STREAM]")
    add_delay(parser, has_clock=True)
    add_rows(parser)
    add_rate(parser, 500.0)
    parser.add_argument("--plot", metavar="FILE", type=home, help="write the run as a picture")
    add_settings(parser, ("model", "optimizer", "computing", "HTTP"), NOT_OF_A_DEMO)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    options.stream = options.data or options.stream
    from service.fold.drift import detectors
    from streams.sources.catalog import Stream

    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s")
    detectors.load()  # all imports come before there is something to remove
    declared = options.setting_schema or os.environ.get(f"{PREFIX}SCHEMA", "")
    is_endless = options.examples is None and options.stream in ENDLESS
    stream = _stream(options, is_endless, wants_rows=bool(declared))
    next(stream.batches(1))  # fetches the data that are missing before anything is started
    shadow = {} if f"{PREFIX}SHADOW" in os.environ else {"shadow": "adagrad"}

    from service.commands.demonstration.demonstration import run_demo

    try:
        folder = tempfile.TemporaryDirectory(prefix="funnel-demo-")
    except OSError as error:
        raise FunnelError(f"the demo cannot keep its files: {error}; set TMPDIR") from error
    with folder as scratch:
        shape: dict[str, Any]
        if isinstance(stream, Stream):
            if options.setting_schema:
                raise FunnelError(f"--schema is for rows, but {stream.name} has dense features")
            shape = {"schema": "", "features": stream.width, "classes": stream.classes}
        else:
            shape = _rows(stream, kinds_of(options), declared, Path(scratch))
        settings = settings_of(options, data_dir=Path(scratch), **shape, **shadow)
        if "port" not in settings.model_fields_set and _is_taken(settings.host, settings.port):
            sys.stderr.write(f"Port {settings.port} is taken, so the demo takes another one.\n")
            settings = settings.model_copy(update={"port": 0})
        delay = delay_of(options, stream)
        return run_demo(stream, options.rate, settings, options.plot, is_endless, delay)


def _stream(
    options: argparse.Namespace, is_endless: bool, wants_rows: bool
) -> "Stream | RowStream":
    """Return the stream that the options name."""
    if not is_endless:
        return source_of(options, wants_rows)
    if options.stream not in NAMES or options.label is not None or has_row_options(options):
        options.examples = USUAL_EXAMPLES
        return source_of(options, wants_rows)

    from streams.sources.catalog import IMAGE_STREAMS, endless

    every = max(1, round(TURN_SECONDS * options.rate))
    is_of_images = options.stream in IMAGE_STREAMS
    source = source_of_images(options.source) if is_of_images else "mnist"
    return endless(options.stream, every, source)


def _is_taken(host: str, port: int) -> bool:
    """Return whether another process listens on a port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def _rows(
    stream: "RowStream", kinds: dict[str, str], declared: str, scratch: Path
) -> dict[str, Any]:
    """Return the settings of a service for rows.

    Args:
        stream: to learn.
        kinds: of columns, where the inferred ones are wrong.
        declared: the schema that the user gives; empty for none.
        scratch: folder for a schema with those kinds.

    Raises:
        FunnelError: kinds are given, and a schema that declares them.
    """
    if declared not in ("", AUTO):
        if kinds:
            raise FunnelError(f"--kind and --time are in the schema: edit {declared}")
        return {"schema": declared}
    if not kinds:
        usual = Settings.model_fields["max_classes"].get_default()
        labels = len(stream.labels)
        return {"schema": AUTO} | ({"max_classes": labels} if labels > usual else {})

    from service.fold.schema.toml import to_toml

    path = scratch / "schema.toml"
    path.write_text(to_toml(replace(schema_of(stream, kinds), labels=())))
    return {"schema": str(path)}
