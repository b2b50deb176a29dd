"""Record the golden files again, and print one line for each file that changes.

    python -m tests.golden.record

The golden files are a promise that nothing observable changes unnoticed. A commit that records
them again must give the reason for each change in its message; this holds for additions too. Names
in ``contract/`` may only be added: if one disappears or changes, clients, dashboards and logs of
users break.

Checkpoints and data folders were written by an *older version*, so this script writes them only
where they are missing. It does record again the digests that are expected of them.
"""

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.golden import folders
from tests.golden.compare import difference, read, write
from tests.golden.configurations import NAMES, fresh
from tests.golden.contract import CONTRACT, drive, seen, static
from tests.golden.data import BATCHES
from tests.golden.digests import CHECKPOINTS, DIGESTS, FORMAT_2, OPENED, bits, go_on, learn


def main() -> int:
    """Record everything."""
    logging.disable()  # a model of the configurations fails on purpose, with a traceback
    machine = bits()
    _save(DIGESTS, {"bits": machine, "configurations": {name: learn(name) for name in NAMES}})
    CHECKPOINTS.mkdir(exist_ok=True)
    for name in NAMES:
        path = CHECKPOINTS / f"{name}.safetensors"
        if not path.exists():
            golden = fresh(name)
            golden.fold(range(BATCHES))
            path.write_bytes(golden.checkpoint(BATCHES))
            _say(f"{path.name}: new")
    older = [*NAMES, *FORMAT_2]
    _save(OPENED, {name: go_on(CHECKPOINTS / f"{name}.safetensors") for name in older})
    for name in folders.BEFORE:
        if not (folders.FOLDERS / name).exists():
            folders.record(name)
            _say(f"folder/{name}: new")
        with tempfile.TemporaryDirectory() as scratch:
            found = folders.reopen(Path(scratch), name)
        _save(folders.FOLDERS / name / "expected.json", {"bits": machine} | found)
    for name, make in static().items():
        _save(CONTRACT / f"{name}.json", make())
    with tempfile.TemporaryDirectory() as scratch:
        for name, value in seen(drive(Path(scratch))).items():
            _save(CONTRACT / f"{name}.json", value)
    return 0


def _save(path: Path, value: Any) -> None:
    """Write a file, and print how many of its lines changed."""
    golden = read(path)
    if golden is None:
        _say(f"{path.name}: new")
    elif unlike := difference(golden, value):
        lines = [line for line in unlike.splitlines()[2:] if line[0] in "+-"]
        gone = sum(line[0] == "-" for line in lines)
        _say(f"{path.name}: {gone} lines gone, {len(lines) - gone} new, first {lines[0].strip()}")
    write(path, value)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
