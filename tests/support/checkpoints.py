"""A checkpoint store whose log messages a test can read."""

from pathlib import Path

from service.trainer.checkpoint import CheckpointStore

NUMERICS = {"torch": "x"}


def kept(directory: Path) -> tuple[CheckpointStore, list[str]]:
    """Return a store in `directory` and the list of messages that it logs."""
    said: list[str] = []
    return CheckpointStore(directory, NUMERICS, said.append), said
