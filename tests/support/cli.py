"""The command line in a process of its own, which is forked from one that has imported all of it.

What a command imports, and how long that takes, is for `tests.service.test_cli` to show.
"""

import os
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.support.harness import context


def environment() -> dict[str, str]:
    """Return the variables of a command: those of this process, without any of Funnel's."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FUNNEL_")}
    return clean | {"OMP_NUM_THREADS": "1"}


def funnel(
    *arguments: str, cwd: Path | None = None, timeout: float = 120.0, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command, and return its exit status and what it wrote.

    Args:
        arguments: of the command.
        cwd: the working directory.
        timeout: seconds after which it is killed.
        variables: of the environment, besides those of `environment`.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start(*arguments, out=out, err=err, cwd=cwd, **variables)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        return subprocess.CompletedProcess(
            arguments, process.exitcode, out.read_text(), err.read_text()
        )


def start(
    *arguments: str, out: Path, err: Path, cwd: Path | None = None, **variables: str
) -> ForkServerProcess:
    """Start a command, and return its process.

    Args:
        arguments: of the command.
        out, err: files of what it writes.
        cwd: the working directory.
        variables: of the environment, besides those of `environment`.
    """
    where, all_variables = str(cwd or Path.cwd()), environment() | variables
    arguments_of_run = (arguments, where, all_variables, str(out), str(err))
    process = context.Process(target=_run, args=arguments_of_run)
    process.start()
    return process


def _run(
    arguments: tuple[str, ...], cwd: str, variables: dict[str, str], out: str, err: str
) -> None:
    for stream, path in ((0, os.devnull), (1, out), (2, err)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, stream)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["funnel", *arguments]
    from service.cli import main

    sys.exit(main())
