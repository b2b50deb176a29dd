"""The command ``funnel``.

Each command lives in `service.commands` and is imported when it is used, so that help and short
commands start at once.
"""

import argparse
import errno
import io
import os
import signal
import sys
from importlib import import_module
from importlib.metadata import version
from types import FrameType

from streams.errors import FunnelError

COMMANDS = {
    "serve": "learn and serve one model over HTTP",
    "demo": "watch a model learn MNIST digits that start to rotate",
    "stream": "send a stream to a service or into its log",
    "compare": "compare Funnel with other learners on a stream",
    "schema": "infer the schema of a file of rows with names",
    "data": "fetch data sets",
}
"""Each command, with its line of help; the module of that name in `service.commands` runs it."""
SERVERS = ("serve", "demo")
"""Commands that SIGTERM is meant to end: then their exit status is 0."""
WITHOUT_OUTPUT = ("serve",)
"""Commands whose result is not on standard output."""
OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC)
"""The reader of the output is gone, as in ``funnel compare FILE | head -1``, or a disk is full."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    An error that the user can fix prints one line and returns 1; any other shows its traceback.
    """
    given = sys.argv[1:] if arguments is None else arguments
    is_output_closed = _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may know no Greek letters
    command = next((word for word in given if word in COMMANDS), "")
    end_on_sigterm(0 if command in SERVERS else 128 + signal.SIGTERM)
    try:
        parser = make_parser(command)
        if not given:
            parser.print_help(sys.stderr)
            return 2
        options = parser.parse_args(given)
        if is_output_closed and command not in WITHOUT_OUTPUT:
            raise FunnelError("standard output is closed: redirect it, for example to /dev/null")
        sys.path.append(os.getcwd())  # a --model of the user's own may be here
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except FunnelError as error:
        sys.stderr.write(f"funnel: {error}\n")
        return 1
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.stderr.write(f"funnel: {error}\n")
        return 1


def end_on_sigterm(status: int) -> None:
    """End the process in an orderly way, with an exit status, when SIGTERM comes.

    Without a handler the process with the number 1 would ignore it. A service that runs has a
    handler of its own.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(status)

    signal.signal(signal.SIGTERM, end)


def _open_closed_streams() -> bool:
    """Replace standard streams that were closed at the start; return whether the output was.

    Otherwise a write would fail, and a socket could get the number of a stream: libraries would
    write their errors to it, and libuv would abort when it closes it.
    """
    is_output_closed = sys.stdout is None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    return is_output_closed


def make_parser(command: str = "") -> argparse.ArgumentParser:
    """Return the parser of all commands, with the options of ``command`` alone."""
    parser = argparse.ArgumentParser(
        prog="funnel",
        description="Online learning for data that drifts, with no step size to tune.",
    )
    parser.add_argument("--version", action="version", version=f"funnel {version('funnel-stream')}")
    parsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        chosen = parsers.add_parser(name, help=line)
        if name == command:
            module = import_module(f"service.commands.{name}")
            chosen.description = module.DESCRIPTION
            module.add_options(chosen)
            chosen.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
