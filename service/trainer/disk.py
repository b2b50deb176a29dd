"""Where checkpoints are kept, as they need it; and the file system as such a place."""

import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

SCRAP = ".writing-"
"""The start of the names of files that are not whole yet."""


class Storage(Protocol):
    """Files in folders. Every method raises OSError where the system does."""

    def make(self, folder: Path) -> None:
        """Create a folder and the one above it, for their owner alone, unless they exist."""

    def list(self, folder: Path) -> list[Path]:
        """Return the paths of all files in a folder."""

    def read(self, path: Path) -> bytes:
        """Return the bytes of a file."""

    def put(self, path: Path, raw: bytes) -> None:
        """Write a file so that after a crash it exists whole or not at all; return when it lasts.

        Raises:
            OSError: it could not be written.
        """

    def remove(self, path: Path) -> None:
        """Remove a file; do nothing if there is none."""


class NewFile(Protocol):
    """A file that is being written."""

    def write(self, raw: bytes) -> None:
        """Write all the bytes."""

    def sync(self) -> None:
        """Return when the bytes outlast a power cut."""

    def __enter__(self) -> Self:
        """Return the file."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close the file."""


class Disk(Storage, Protocol):
    """A file system."""

    def create(self, path: Path) -> NewFile:
        """Create a file that only its owner may read."""

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, and replace the file that had it."""

    def sync(self, folder: Path) -> None:
        """Return when the names in a folder outlast a power cut."""

    def put(self, path: Path, raw: bytes) -> None:
        """Write a file under a name of its own, and then give it its name, as `Storage.put`.

        Raises:
            OSError: it could not be written; then no temporary file is left.
        """
        scratch = path.with_name(f"{SCRAP}{uuid.uuid4().hex}")
        try:
            with self.create(scratch) as file:
                file.write(raw)
                file.sync()
            self.rename(scratch, path)
        except BaseException:
            self.remove(scratch)
            raise
        self.sync(path.parent)


class _SystemFile(NewFile):
    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")

    def write(self, raw: bytes) -> None:
        self._file.write(raw)
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._file.close()


class SystemDisk(Disk):
    """The file system of the machine."""

    def make(self, folder: Path) -> None:
        for each in (folder.parent, folder):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)  # only the last is of this mode

    def list(self, folder: Path) -> list[Path]:
        return list(folder.iterdir())

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def create(self, path: Path) -> NewFile:
        return _SystemFile(path)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _PassingFile(_SystemFile):
    def sync(self) -> None:
        """Do nothing."""


class PassingDisk(SystemDisk):
    """The file system for files that may be lost, or cut in two, when the power fails."""

    def create(self, path: Path) -> NewFile:
        return _PassingFile(path)

    def sync(self, folder: Path) -> None:
        """Do nothing."""
