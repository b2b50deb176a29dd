"""``funnel demo``: a service and a stream that shifts, to watch."""

import argparse
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.commands.options import add_settings, settings_of
from service.commands.row_options import add_rows, kinds_of, schema_of, source_of
from service.commands.stream_options import add_rate, add_stream
from service.fold.task import AUTO
from service.settings import Settings
from streams.environment import PREFIX, home
from streams.errors import FunnelError

if TYPE_CHECKING:
    from streams.rowstream import RowStream

DESCRIPTION = (
    "Start a log, a service and a stream of digits that turn from 90° to 0° to 45°, and show "
    "accuracy, scale and gains as they adapt: in the terminal, and on a page where you can turn "
    "the stream yourself. With another stream, or a file of your own, also one of rows with names, "
    "the service learns that. Everything is removed afterwards."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_stream(parser, name="abrupt", examples=30_000)
    add_rows(parser)
    add_rate(parser, 500.0)
    parser.add_argument("--plot", metavar="FILE", type=home, help="write the run as a picture")
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    from streams.sources.catalog import Stream

    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s")
    declared = options.setting_schema or os.environ.get(f"{PREFIX}SCHEMA", "")
    stream = source_of(options, wants_rows=bool(declared))
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
        return run_demo(stream, options.rate, settings, options.plot)


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
