"""``funnel completion``: a script that lets a shell complete commands and options."""

import argparse
import sys
from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = (
    "Print a script that lets a shell complete commands, options and files. In bash: "
    'eval "$(funnel completion bash)" in ~/.bashrc. In zsh: funnel completion zsh > _funnel, in a '
    "folder of $fpath. In fish: funnel completion fish > ~/.config/fish/completions/funnel.fish."
)
FILES, FOLDERS = ("FILE", "STREAM", "SOURCE"), ("DIR",)
"""Names that help gives to values that are files, and to folders."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(options: argparse.Namespace) -> int:
    """Print the script; return the exit status."""
    import shtab

    parser: argparse.ArgumentParser = options.whole()
    for action in _actions(parser):
        if action.metavar in FILES:
            vars(action)["complete"] = shtab.FILE  # shtab looks for it
        elif action.metavar in FOLDERS:
            vars(action)["complete"] = shtab.DIRECTORY
    sys.stdout.write(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the options and arguments of a parser and of all commands of it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
