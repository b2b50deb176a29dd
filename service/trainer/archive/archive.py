"""The archive of one model: segments of its log, and checkpoints from which they are replayed.

It lies next to the checkpoints: in DATA_DIR, or in object storage. The service that learns writes
each file once. A segment is named by its cuts and its digest, so that two trainers that write the
same one do no harm. Each segment names the one before it. Readers follow these names back from the
newest, and never take what another history has left there.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

from service.log.cuts import Rebuild
from service.log.errors import LogError, LogUnavailable
from service.process import Clock
from service.trainer.archive.segment import DamagedSegmentError, Name, Segment
from service.trainer.checkpoint import Checkpoint, DamagedError, decode
from service.trainer.disk import Storage
from service.trainer.store import CheckpointStore, Info

ARCHIVES = "archive"
"""The folder of archives in DATA_DIR; in object storage, that of an archive among its model's."""
KEPT_NAME = re.compile(r"kept-(\d{8})-(\d{14})-(\d{11})-(\d{12})\.safetensors")
REBUILT_NAME = re.compile(r"rebuilt-(\d{14})-(\d{11})-(\d{12})-([0-9a-f]{64})\.safetensors")
HOUR, DAY = 3_600, 86_400
LARGEST_SHARE = 4
"""A checkpoint that takes more than this part of the archive's bytes is not kept in it."""


@dataclass(frozen=True)
class Limits:
    """How much is kept."""

    seconds: float = inf
    """Greatest age of what is kept."""
    bytes: float = inf


class KeptName(NamedTuple):
    """The name of a checkpoint in the archive."""

    epoch: int
    cut: int
    written: int
    """When it was written, in Unix seconds."""
    size: int
    """Bytes of the file."""

    @classmethod
    def parse(cls, text: str) -> "KeptName | None":
        """Return the name in a file's name; None if that is no such checkpoint."""
        found = KEPT_NAME.fullmatch(text)
        return cls(*map(int, found.groups())) if found else None

    def __str__(self) -> str:
        start = f"kept-{self.epoch:08d}-{self.cut:014d}-{self.written:011d}"
        return f"{start}-{self.size:012d}.safetensors"


class RebuiltName(NamedTuple):
    """The name of a state that a `service.log.cuts.Rebuild` has put in place of another."""

    cut: int
    """Number of the cut that carries the command."""
    written: int
    """When it was written, in Unix seconds."""
    size: int
    """Bytes of the file."""
    sha256: str
    """Digest of the file."""

    @classmethod
    def parse(cls, text: str) -> "RebuiltName | None":
        """Return the name in a file's name; None if that is no such state."""
        if (found := REBUILT_NAME.fullmatch(text)) is None:
            return None
        cut, written, size = map(int, found.groups()[:3])
        return cls(cut, written, size, found[4])

    def __str__(self) -> str:
        start = f"rebuilt-{self.cut:014d}-{self.written:011d}-{self.size:012d}"
        return f"{start}-{self.sha256}.safetensors"


class Archive:
    """The archive of one model in one place.

    Args:
        folder: of its files.
        disk: that of the folder.
        limits: of what is kept.
        clock: tells when files are written.
        warn: called with a message about a damaged file.
    """

    def __init__(
        self, folder: Path, disk: Storage, limits: Limits, clock: Clock, warn: Callable[[str], None]
    ) -> None:
        self._folder, self._disk, self.limits = folder, disk, limits
        self._clock, self._warn = clock, warn
        self.bytes = 0
        """Bytes of its files, as of the last `prune`."""
        self._is_too_small = False

    def segments(self) -> list[Name]:
        """Return the names of all segments, in the order in which they were written.

        Raises:
            OSError: the archive cannot be read.
        """
        found = filter(None, (Name.parse(path.name) for path in self._paths()))
        return sorted(found, key=lambda name: (name.written, name.last))

    def checkpoints(self) -> list[KeptName]:
        """Return the names of the checkpoints, oldest first; raises as `segments` does."""
        found = filter(None, (KeptName.parse(path.name) for path in self._paths()))
        return sorted(found, key=lambda name: (name.cut, name.epoch))

    def _paths(self) -> list[Path]:
        try:
            return self._disk.list(self._folder)
        except FileNotFoundError:
            return []

    def read(self, name: Name) -> Segment:
        """Return a segment.

        Raises:
            DamagedSegmentError: it is damaged.
            OSError: it cannot be read.
        """
        return Segment.of(str(name), self._disk.read(self._folder / str(name)))

    def newest(self) -> tuple[Name, Segment] | None:
        """Return the newest segment, or None if there is none, or it is damaged.

        Raises:
            OSError: the archive cannot be read.
        """
        if not (names := self.segments()):
            return None
        try:
            return names[-1], self.read(names[-1])
        except DamagedSegmentError as error:
            self._warn(f"the archive begins again: {error}")
            return None

    def add(self, segment: Segment) -> Name:
        """Write a segment, and return its name.

        Raises:
            OSError: it may or may not be written.
        """
        raw, known = segment.to_bytes(), [name.written for name in self.segments()]
        name = segment.name(raw, max(int(self._clock.time()), *known, 0))
        self._disk.make(self._folder)
        self._disk.put(self._folder / str(name), raw)
        return name

    def keep(self, store: CheckpointStore, info: Info, is_needed: bool = False) -> None:
        """Copy a checkpoint whole, if none was copied in the last hour.

        Args:
            store: has it.
            info: of it.
            is_needed: whether segments are to begin there, so that it is copied in any case.

        Raises:
            OSError, DamagedError: it could not be copied.
        """
        now, known = int(self._clock.time()), self.checkpoints()
        if any(name.cut == info.progress.cut for name in known):
            return
        if not is_needed and any(0 <= now - name.written < HOUR for name in known):
            return
        raw = store.whole(info)
        if LARGEST_SHARE * len(raw) > self.limits.bytes:
            if not self._is_too_small:
                self._warn(
                    f"checkpoints of {len(raw):,} bytes are not kept in an archive of "
                    f"{self.limits.bytes:,.0f}: give FUNNEL_ARCHIVE {LARGEST_SHARE} times as much"
                )
            self._is_too_small = True
            return
        name = KeptName(info.progress.epoch, info.progress.cut, now, len(raw))
        self._disk.make(self._folder)
        self._disk.put(self._folder / str(name), raw)

    def checkpoint(self, name: KeptName) -> Checkpoint:
        """Return a checkpoint.

        Raises:
            DamagedError: it is damaged.
            OSError: it cannot be read.
        """
        decoded = decode(self._disk.read(self._folder / str(name)))
        if decoded.manifest is not None:
            raise DamagedError("it is not whole")
        return decoded.copy

    def put_rebuilt(self, cut: int, raw: bytes) -> str:
        """Write the state of a `service.log.cuts.Rebuild`, and return the name of its file.

        Args:
            cut: number of the cut that is to carry the command.
            raw: bytes of a checkpoint, whole.

        Raises:
            OSError: it may or may not be written.
        """
        written, digest = int(self._clock.time()), hashlib.sha256(raw).hexdigest()
        name = str(RebuiltName(cut, written, len(raw), digest))
        self._disk.make(self._folder)
        self._disk.put(self._folder / name, raw)
        return name

    def rebuilt(self, command: Rebuild) -> Checkpoint:
        """Return the state that a command names.

        Raises:
            LogError: it is gone, or damaged.
            LogUnavailable: it cannot be read now.
        """
        name = RebuiltName.parse(command.file)
        try:
            raw = self._disk.read(self._folder / command.file)
            if name is None or hashlib.sha256(raw).hexdigest() != name.sha256:
                raise DamagedError("its SHA-256 does not match")
            return decode(raw).copy
        except (FileNotFoundError, DamagedError) as error:
            raise LogError(
                f"{command.file}, from which the log goes on, cannot be read: {error}. Put it back "
                "from a backup"
            ) from error
        except OSError as error:
            raise LogUnavailable(f"{command.file} cannot be read now: {error}") from error

    def prune(self) -> None:
        """Remove what is older than it may be, and the oldest while there is too much.

        Checkpoints of the last day stay, and one of each day before.

        Raises:
            OSError: something could not be removed.
        """
        segments, checkpoints = self.segments(), self.checkpoints()
        newest = segments[-1:]
        archived = newest[0].last if newest else 0
        states = [found for path in self._paths() if (found := RebuiltName.parse(path.name))]
        files: list[tuple[int, Name | KeptName | RebuiltName]] = []
        files += [(name.last, name) for name in segments]
        files += [(name.cut, name) for name in checkpoints]
        files += [(name.cut, name) for name in states]
        files.sort(key=lambda file: file[0])
        now, left = self._clock.time(), sum(name.size for _, name in files)
        thinned = set(map(str, _thinned(checkpoints, now)))
        for cut, name in files:
            if isinstance(name, RebuiltName) and cut > archived:
                continue  # the log still needs it
            is_old = now - name.written > self.limits.seconds
            is_outdated = is_old or left > self.limits.bytes or str(name) in thinned
            if is_outdated and name not in newest:
                self._disk.remove(self._folder / str(name))
                left -= name.size
        self.bytes = left


def _thinned(checkpoints: list[KeptName], now: float) -> Iterator[KeptName]:
    """Yield all but one of each day of the checkpoints that are older than a day."""
    days = set[int]()
    for name in checkpoints:
        if now - name.written > DAY:
            if (day := name.written // DAY) in days:
                yield name
            days.add(day)
