"""Checkpoints of small states, and stores to keep them in."""

from pathlib import Path

from service.log.position import EntryId, Position, Progress
from service.trainer.checkpoint import Checkpoint
from service.trainer.store import CheckpointStore
from tests.support.states import a_batch, a_state, step

PROGRESS = Progress("uuid", 3, 17, Position(EntryId(5, 1), 4), 9, 1, 70, 30)
NUMERICS = {"torch": "x"}


def a_copy(steps: int = 3, progress: Progress = PROGRESS) -> Checkpoint:
    state = a_state()
    for k in range(steps):
        step(state, a_batch(k))
    return Checkpoint.of(state, progress)


def kept(directory: Path) -> tuple[CheckpointStore, list[str]]:
    said: list[str] = []
    return CheckpointStore(directory, NUMERICS, said.append), said
