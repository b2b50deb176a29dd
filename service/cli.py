"""The command ``funnel``.

Each command lives in `service.commands` and is imported when it is used, so that help and short
commands start at once.
"""

import argparse
import difflib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from types import FrameType
from typing import NoReturn

from service.commands.typed import as_typed
from streams.errors import FunnelError

COMMANDS = {
    "serve": "learn and serve one model over HTTP",
    "demo": "watch a model learn MNIST digits that start to rotate",
    "stream": "send a stream to a service or into its log",
    "source": "carry a Kafka topic, a NATS stream or a growing file into a log",
    "compare": "compare Funnel with other learners on a stream",
    "schema": "infer the schema of a file of rows with names",
    "status": "show whether a service is ready, and how it learns",
    "pause": "let a service learn nothing for a while",
    "resume": "let a service go on learning after a pause",
    "promote": "let a shadow answer predictions in place of the learner that does",
    "skip": "rebuild the model of a service without some examples",
    "rollback": "let the model of a service go back to a version",
    "predict": "let a service predict the rows of a file",
    "export": "write the model that a service answers with as ONNX, torch or safetensors",
    "replay": "rebuild a version of a model, or train another one, from an archive",
    "dead": "list what a service did not learn, and why",
    "data": "fetch data sets",
    "completion": "print a script that completes commands in a shell",
}
"""Each command, with its line of help; the module of that name in `service.commands` runs it."""
FOLDERS = dict.fromkeys(("pause", "resume", "promote", "skip", "rollback"), "orders.")
FOLDERS |= {"replay": "history.", "source": "sources."}
"""The package in `service.commands` of commands whose module is not there itself."""
SERVERS = ("serve", "demo", "source")
"""Commands that SIGTERM is meant to end: then their exit status is 0."""
WITHOUT_OUTPUT = ("serve",)
"""Commands whose result is not on standard output."""
OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC)
"""The reader of the output is gone, as in ``funnel compare FILE | head -1``, or a disk is full."""


USAGE, INTERRUPTED = 2, 130
"""Exit statuses: of a command line that cannot be understood, and after Ctrl-C."""
OPTIONAL = re.compile(r"\s*\[-[^\[\]]*(?:\[[^\]]*\])?[^\[\]]*\]")
"""An option in the line of usage that argparse makes."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    chosen: "Parser | None" = None
    """The parser of the command that was named, of the parser of all commands."""

    @property
    def names(self) -> list[str]:
        """The long options, also those that help does not show."""
        return [n for a in self._actions for n in a.option_strings if n.startswith("--")]

    def check(self, options: Iterable[str]) -> None:
        """Refuse an option that is not known, with the one that was probably meant."""
        parser = self.chosen or self
        known = [*self.names, *parser.names]
        for option in options:
            if option not in known:
                hint = _hint(option, known)
                parser.error(f"no option {option}{hint}. See {parser.prog} --help")

    def error(self, message: str) -> NoReturn:
        """Print an error and exit with status 2."""
        if (more := message.removeprefix("unrecognized arguments: ")) != message:
            parser = self.chosen or self
            is_address = "://" in more and "--to" in parser.names
            hint = f" (did you mean --to {more}?)" if is_address else ""
            self.exit(
                USAGE, f"{parser.prog}: no argument {more!r}{hint}. See {parser.prog} --help\n"
            )
        self.exit(USAGE, f"{self.prog}: {message.removeprefix('argument ')}\n")


class _Version(argparse.Action):
    """Shows the version, which takes a while to find, when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and exit with status 0."""
        from importlib.metadata import version

        sys.stdout.write(f"funnel {version('funnel-stream')}\n")
        parser.exit()


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    An error that the user can fix prints one line and returns 1, or 2 if its message begins with an
    option that was typed; any other error shows its traceback.
    """
    given = sys.argv[1:] if arguments is None else arguments
    is_output_closed = _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may know no Greek letters
    command = next((word for word in given if not word.startswith("-")), "")
    end_on_sigterm(0 if command in SERVERS else 128 + signal.SIGTERM)
    end_on_sigint()
    try:
        parser = make_parser(command)
        if not given:
            parser.print_help()
            return 0
        if command and command not in COMMANDS:
            parser.error(f"no command {command!r}{_hint(command, COMMANDS)}. See funnel --help")
        parser.check(_typed(given))
        options = parser.parse_args(given)
        if is_output_closed and command not in WITHOUT_OUTPUT:
            raise FunnelError("standard output is closed: redirect it, for example to /dev/null")
        sys.path.append(os.getcwd())  # a --model of the user's own may be here
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except FunnelError as error:
        message = as_typed(str(error), set(_typed(given)))
        sys.stderr.write(f"funnel: {message}\n")
        return USAGE if message.startswith("--") else 1
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.stderr.write(f"funnel: {error}\n")
        return 1


def _typed(given: Sequence[str]) -> list[str]:
    """Return the long options of a command line, without their values."""
    words = given[: given.index("--")] if "--" in given else given
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def _hint(word: str, known: Iterable[str]) -> str:
    """Return the known word that is the closest, as a hint; empty if none is close."""
    close = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def end_on_sigint() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, but end the process at once in the middle of an import.

    An import that is interrupted may swallow the exception, or show a traceback. Commands that have
    something to remove import what they need before they make it.
    """

    def end(number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None:
            if at.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(INTERRUPTED)
            at = at.f_back
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, end)


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


def make_parser(command: str = "", is_whole: bool = False) -> Parser:
    """Return the parser of all commands.

    Args:
        command: the one whose options it has.
        is_whole: whether it has the options of every command, which takes longer.
    """
    parser = Parser(
        prog="funnel",
        description="Online learning for data that drifts, with no step size to tune.",
        epilog="`funnel COMMAND --help` lists the options of a command.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="show the version and exit",
    )
    parsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        chosen = parsers.add_parser(name, help=line, allow_abbrev=False)
        if name == command or is_whole:
            module = import_module(f"service.commands.{FOLDERS.get(name, '')}{name}")
            chosen.description = module.DESCRIPTION
            module.add_options(chosen)
            usage = OPTIONAL.sub("", chosen.format_usage().removeprefix("usage: "))
            words = usage.removeprefix(chosen.prog).split()
            chosen.usage = " ".join((chosen.prog, "[OPTION ...]", *words))
            chosen.set_defaults(run=module.run, whole=partial(make_parser, is_whole=True))
            parser.chosen = chosen
    return parser


if __name__ == "__main__":
    sys.exit(main())
