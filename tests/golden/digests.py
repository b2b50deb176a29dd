"""The golden digests: each configuration folds the golden stream."""

import math
from pathlib import Path
from typing import Any

import torch

from tests.golden.compare import HERE
from tests.golden.configurations import fingerprint, fresh, opened
from tests.golden.data import BATCHES, MORE

DIGESTS = HERE / "digests.json"
CHECKPOINTS = HERE / "checkpoints"
OPENED = HERE / "checkpoints.json"
FORMAT_2 = {
    f"format-2/{name}": name for name in ("pool-logistic", "funnel-mlp", "rmsprop-logistic")
}
"""Checkpoints of format 2 by their paths below CHECKPOINTS, with their configurations; those of
format 1 have the names of the configurations."""


def one_thread() -> None:
    """Let an operation use one thread: the bits depend on the number."""
    torch.set_num_threads(1)


def bits() -> dict[str, str]:
    """Return the properties of this machine that the bits of golden files depend on."""
    one_thread()
    return fingerprint()


def learn(name: str) -> dict[str, Any]:
    """Fold the golden stream; return the reports of all steps, and digests at the end."""
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


def check(golden: dict[str, Any], found: dict[str, Any], tolerance: float | None) -> None:
    """Compare bit for bit, or if there is a tolerance, only the reports, within it."""
    if tolerance is None:
        assert found == golden
        return
    assert len(found["reports"]) == len(golden["reports"])
    for mine, theirs in zip(found["reports"], golden["reports"], strict=True):
        assert (mine[0], mine[3]) == (theirs[0], theirs[3])
        if tolerance == math.inf and mine[0] > 1:
            continue
        for one, other in zip(mine[1:3], theirs[1:3], strict=True):
            a, b = float.fromhex(one), float.fromhex(other)
            assert abs(a - b) <= tolerance * max(1.0, abs(b)) or (math.isnan(a) and math.isnan(b))


def tolerance_of(name: str) -> float:
    """Return how far reports may be apart on a machine that makes other bits.

    Batch normalization takes out the biases before it: their gradients are rounding errors, which
    Adam and RMSprop scale up to whole steps. RMSprop's inputs are raw, and some are huge: of its
    reports only the first can be compared.
    """
    if name == "rmsprop-restless":
        return math.inf
    return 0.1 if name.endswith("restless") else 1e-4
