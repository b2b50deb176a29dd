"""``funnel export``: the model of a running service as a file that other programs run."""

import argparse
import os
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from service.commands.remote import DEFAULT_URL, KEYS, Service, checked, key
from streams.errors import FunnelError

DESCRIPTION = (
    "Write the model that a service answers with now, without what it needs to learn: as ONNX, as "
    "a program that torch.export.load opens, or as safetensors. Linear models and networks whose "
    "columns are numbers can be exported. The service goes on. With keys, " + KEYS["api"] + "."
)
FORMATS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
"""Formats with the suffixes of their files."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help=f"file to write: {', '.join(FORMATS.values())}"
    )
    parser.add_argument(
        "--to", choices=FORMATS, metavar="FORMAT",
        help=f"{', '.join(FORMATS)} [that of the file's suffix]",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="url", default=DEFAULT_URL, metavar="URL",
        help=f"address of the service [{DEFAULT_URL}]",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Write the file; return the exit status.

    Raises:
        FunnelError: the format is not known, the model cannot be exported, or the file not written.
    """
    form = options.to or _form_of(options.file)
    with closing(Service(options.url, key("API"))) as service:
        raw = checked(service.get("/model/export")).content
    from service.export import Exported

    module = Exported.from_bytes(raw)
    write_file(options.file, module.in_format(form))
    names = ", ".join(module.names) or f"{module.width} dense features"
    sys.stdout.write(f"{options.file}: version {module.about.version} as {form}, of {names}\n")
    return 0


def _form_of(file: Path) -> str:
    """Return the format of a file's suffix."""
    for form, suffix in FORMATS.items():
        if file.suffix == suffix:
            return form
    raise FunnelError(
        f"--to: {file.name!r} ends with none of {', '.join(FORMATS.values())}; name the format"
    )


def write_file(file: Path, raw: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        handle, scrap = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(raw)
            Path(scrap).replace(file)
        except BaseException:
            with suppress(OSError):
                Path(scrap).unlink()
            raise
    except OSError as error:
        raise FunnelError(f"{file} cannot be written: {error.strerror}") from error
