"""The command ``funnel``, started where other modules may have the names of Funnel's packages.

``funnel``, ``service`` and ``streams`` are common names. A user's own module of such a name, on
PYTHONPATH or in the working directory, could be imported in place of Funnel's. This module has the
name of the distribution and imports the standard library only. It arranges the path before it
imports a package, and names what is not installed. ``python -m funnel_stream`` is the same command.
"""

import signal
import sys

if __name__ == "__main__" or sys.argv[0].endswith(("/funnel", "\\funnel", "\\funnel.exe")):
    # Ctrl-C in an import would show a traceback. The command sets a handler of its own later.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("funnel", "service", "streams")
_HERE = Path(__file__).resolve()
ROOT = next((p for p in _HERE.parents if (p / "service/cli.py").exists()), _HERE.parent)
"""The folder of Funnel's packages."""
INSTALL = "pip install 'funnel-stream[service]'"


def main() -> int:
    """Run the command of `sys.argv` and return its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the command has its own handler
    sys.path[:] = ordered(sys.path)
    for name in PACKAGES:
        if (found := _origin(name)) is None or not found.is_relative_to(ROOT / name):
            return _fail(
                f"Python imports {name} from {found or 'nowhere'}, not from {ROOT / name}: "
                "install Funnel into a virtual environment of its own"
            )
    try:
        from service.cli import main as run

        status = run()
    except ModuleNotFoundError as error:
        if error.name is None or (package := error.name.partition(".")[0]) in PACKAGES:
            raise
        return _fail(f"the command needs {package}, which is not installed: {INSTALL}")
    has_own_model = "FUNNEL_MODEL" in os.environ or any("--model" in word for word in sys.argv)
    if status in (1, 2) and has_own_model:
        for path in hidden(sys.path):
            sys.stderr.write(
                f"funnel: {path} is hidden by Funnel's package of that name; rename it if your "
                "--model needs it\n"
            )
    return status


def ordered(path: list[str]) -> list[str]:
    """Return the entries of a path, those last that hold another module named as a package is.

    The order stays otherwise. A process that is given this path finds Funnel's packages too.
    """
    return sorted(path, key=lambda entry: bool(hidden([entry])))


def hidden(path: list[str]) -> list[Path]:
    """Return the files of modules on the path that are not Funnel's but named as a package is."""
    found = (
        spec.origin and Path(spec.origin).resolve()
        for entry in path
        for name in PACKAGES
        if (spec := PathFinder.find_spec(name, [entry]))  # a folder without modules: None
    )
    return list(dict.fromkeys(origin for origin in found if origin and not _is_ours(origin)))


def _is_ours(origin: Path) -> bool:
    return any(origin.is_relative_to(ROOT / name) for name in PACKAGES)


def _origin(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.origin).resolve() if spec and spec.origin else None


def _fail(message: str) -> int:
    sys.stderr.write(f"funnel: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
