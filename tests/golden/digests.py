"""What the golden digests are of: each configuration folds the golden stream."""

from pathlib import Path
from typing import Any

import torch

from tests.golden.compare import HERE
from tests.golden.configurations import fingerprint, fresh, opened
from tests.golden.data import BATCHES, MORE

DIGESTS = HERE / "digests.json"
CHECKPOINTS = HERE / "checkpoints"
OPENED = HERE / "checkpoints.json"


def one_thread() -> None:
    """Let an operation use one thread: bits depend on it."""
    torch.set_num_threads(1)


def bits() -> dict[str, str]:
    """Return on what the bits of golden files depend."""
    one_thread()
    return fingerprint()


def learn(name: str) -> dict[str, Any]:
    """Return what a configuration learns: reports of all steps, and digests at the end."""
    golden = fresh(name)
    reports = golden.fold(range(BATCHES))
    return {"sha256": golden.sha256(BATCHES), "learned": golden.learned(), "reports": reports}


def go_on(path: Path) -> dict[str, Any]:
    """Return digests of the state in a checkpoint, and those after more batches."""
    golden = opened(path.read_bytes())
    found: dict[str, Any] = {"sha256": golden.sha256(BATCHES), "learned": golden.learned()}
    found["reports"] = golden.fold(range(BATCHES, BATCHES + MORE))
    found["sha256_after"] = golden.sha256(BATCHES + MORE)
    found["learned_after"] = golden.learned()
    return found


def check(golden: dict[str, Any], found: dict[str, Any], is_exact: bool) -> None:
    """Compare bit for bit, or if the machine makes other bits, the reports within 1e-4."""
    if is_exact:
        assert found == golden
        return
    assert len(found["reports"]) == len(golden["reports"])
    for mine, theirs in zip(found["reports"], golden["reports"], strict=True):
        assert (mine[0], mine[3]) == (theirs[0], theirs[3])
        for one, other in zip(mine[1:3], theirs[1:3], strict=True):
            a, b = float.fromhex(one), float.fromhex(other)
            assert abs(a - b) <= 1e-4 * max(1.0, abs(b)) or (a != a and b != b)
