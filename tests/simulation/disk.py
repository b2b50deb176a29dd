"""A disk in memory that loses what was not synced when the power is cut, fills up and breaks."""

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from service.trainer.disk import Disk, NewFile


@dataclass(eq=False)
class _Inode:
    raw: bytes = b""
    is_synced: bool = False


class Platter:
    """What several processes share of a disk: one folder.

    Args:
        rng: draws what a power cut spares.
        created: called with the path and the bytes of each file that gets a new name.
        removed: called with the name of each file that is removed.
    """

    def __init__(
        self,
        rng: random.Random,
        created: Callable[[Path, bytes], object],
        removed: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.files: dict[str, _Inode] = {}
        """By name, as processes see them."""
        self.created, self.removed = created, removed
        self._durable: dict[str, _Inode] = {}
        self._journal: list[dict[str, _Inode | None]] = []
        """Names that were given and taken since the folder was synced; the disk keeps the order."""
        self._rng = rng

    def name(self, change: dict[str, _Inode | None]) -> None:
        """Let names stand for files, or for none, all at once."""
        self._journal.append(change)
        _apply(self.files, change)

    def put(self, name: str, raw: bytes) -> None:
        """Let a file be there from the beginning."""
        self.name({name: _Inode(raw, True)})
        self.sync()

    def sync(self) -> None:
        """Make the names last."""
        self._durable, self._journal = dict(self.files), []

    def cut_power(self) -> None:
        """Lose some of the latest names, and bytes that were not synced."""
        for change in self._journal[: self._rng.randint(0, len(self._journal))]:
            _apply(self._durable, change)
        self.files, self._journal = dict(self._durable), []
        for inode in self.files.values():
            if not inode.is_synced:
                kept = self._rng.choice((0, self._rng.randint(0, len(inode.raw)), len(inode.raw)))
                lost = len(inode.raw) - kept
                inode.raw = inode.raw[:kept] + bytes(self._rng.choice((0, lost)))
                inode.is_synced = True

    def rot(self, name: str) -> None:
        """Flip a bit of a file."""
        inode, at = self.files[name], self._rng.randrange(len(self.files[name].raw))
        damaged = bytearray(inode.raw)
        damaged[at] ^= 1 << self._rng.randrange(8)
        inode.raw = bytes(damaged)

    def durable(self) -> dict[str, bytes]:
        """Return the files that outlast a power cut, whatever it spares."""
        return {name: inode.raw for name, inode in self._durable.items() if inode.is_synced}


def _apply(names: dict[str, _Inode], change: dict[str, _Inode | None]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


class SimulatedFile(NewFile):
    """A file that a process writes.

    Args:
        disk: that of the process.
        inode: its content.
    """

    def __init__(self, disk: "SimulatedDisk", inode: _Inode) -> None:
        self._disk, self._inode = disk, inode

    def write(self, raw: bytes) -> None:
        self._disk.before("write")
        if self._disk.is_full:
            self._inode.raw += raw[: len(raw) // 2]
            raise OSError(errno.ENOSPC, "No space left on device")
        self._inode.raw += raw
        self._inode.is_synced = False
        self._disk.after("write")

    def sync(self) -> None:
        self._disk.before("fsync")
        self._inode.is_synced = True
        self._disk.after("fsync")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Nothing is open."""


class SimulatedDisk(Disk):
    """One process's way to a disk.

    Args:
        platter: shared with other processes.
        crash: called with a moment, ``before`` or ``after``, and an operation; it may raise.
    """

    def __init__(self, platter: Platter, crash: Callable[[str, str], None]) -> None:
        self._platter, self._crash = platter, crash
        self.is_full = self.is_broken = False
        """No space is left; every operation fails."""

    def before(self, operation: str) -> None:
        """Begin an operation."""
        self._crash("before", operation)
        if self.is_broken:
            raise OSError(errno.EIO, "Input/output error")

    def after(self, operation: str) -> None:
        """End an operation."""
        self._crash("after", operation)

    def make(self, folder: Path) -> None:
        self.before("make")

    def list(self, folder: Path) -> list[Path]:
        self.before("list")
        return [folder / name for name in self._platter.files]

    def read(self, path: Path) -> bytes:
        self.before("read")
        if path.name not in self._platter.files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return self._platter.files[path.name].raw

    def create(self, path: Path) -> SimulatedFile:
        self.before("create")
        if path.name in self._platter.files:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        inode = _Inode()
        self._platter.name({path.name: inode})
        self.after("create")
        return SimulatedFile(self, inode)

    def rename(self, old: Path, new: Path) -> None:
        self.before("rename")
        if old.name not in self._platter.files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(old))
        inode = self._platter.files[old.name]
        self._platter.name({old.name: None, new.name: inode})
        self._platter.created(new, inode.raw)
        self.after("rename")

    def remove(self, path: Path) -> None:
        self.before("remove")
        if path.name in self._platter.files:
            self._platter.name({path.name: None})
            self._platter.removed(path.name)
        self.after("remove")

    def sync(self, folder: Path) -> None:
        self.before("fsync folder")
        self._platter.sync()
        self.after("fsync folder")
