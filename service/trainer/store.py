"""The checkpoints of one model in one directory, each written whole or not at all.

Files are named by epoch and cut and never overwritten.
"""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from service.log.position import Progress
from service.trainer.checkpoint import Checkpoint, DamagedError, NewerError, decode, encode
from service.trainer.disk import Disk, SystemDisk
from streams.errors import FunnelError

KEPT = 3
"""Files kept in a directory; the log is trimmed up to the oldest."""
SCRAP = ".writing-"
"""The start of the names of files that are not whole yet."""
NAME = re.compile(r"checkpoint-(\d{8})-(\d{14})\.safetensors")


class UnreadableError(FunnelError, OSError):
    """Checkpoints that cannot be read now, although nothing is wrong with them."""


@dataclass(frozen=True)
class Info:
    """A file that was written."""

    path: Path
    version: int
    progress: Progress
    bytes: int
    sha256: str


class CheckpointStore:
    """The checkpoints of one model in one directory.

    Args:
        directory: created if it does not exist.
        numerics: recorded in every file (see `service.trainer.checkpoint.numerics`).
        warn: called with a message about a damaged file or differing numerics.
        disk: that of the directory.
    """

    def __init__(
        self,
        directory: Path,
        numerics: dict[str, str],
        warn: Callable[[str], None],
        disk: Disk | None = None,
    ) -> None:
        self.directory, self.numerics, self._warn = directory, numerics, warn
        self._disk = disk or SystemDisk()
        self._disk.make(directory)
        self._infos: dict[Path, Info] = {}
        self._seen: list[Path] = []
        self._unread: dict[Path, OSError] = {}

    def files(self) -> list[Path]:
        """Return the paths of all checkpoints, oldest first.

        Raises:
            UnreadableError: the directory cannot be read.
        """
        return sorted(path for path in self._paths() if NAME.fullmatch(path.name))

    def _paths(self) -> list[Path]:
        try:
            return self._disk.list(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(error) from error

    @property
    def has_news(self) -> bool:
        """True if the files have changed since the last `load` or `write`."""
        return self.files() != self._seen

    def clear_scraps(self) -> None:
        """Remove the scraps of killed writers; only while no process writes."""
        for path in self._paths():
            if path.name.startswith(SCRAP):
                self._disk.remove(path)

    def load(self) -> Checkpoint | None:
        """Return the newest good checkpoint, or None if there never was one.

        Raises:
            DamagedError: there are files, but none of them is good.
            UnreadableError: none of them is good, and some cannot be read.
        """
        newest: Checkpoint | None = None
        known, self._unread = self._unread, {}
        files = self._seen = self.files()
        for path in reversed(files):
            try:
                raw = self._disk.read(path)
                copy, metadata = decode(raw)
            except FileNotFoundError:
                continue  # the trainer that this process stands by for has removed it
            except DamagedError as error:
                self._warn(f"checkpoint {path.name} is damaged and skipped: {error}")
            except NewerError as error:
                if newest is None:
                    raise UnreadableError(
                        f"checkpoint {path.name} cannot be read: {error}"
                    ) from error
            except OSError as error:
                if path not in known:
                    self._warn(f"checkpoint {path.name} cannot be read and is skipped: {error}")
                self._unread[path] = error
            else:
                sha256 = metadata["sha256"]
                self._infos[path] = Info(path, copy.version, copy.progress, len(raw), sha256)
                if newest is None:
                    newest = copy
                    self._compare(metadata["numerics"], path)
        if self._unread and newest is None:
            self._seen = []  # so that they count as news
            raise _unreadable(next(iter(self._unread.values())))
        if files and newest is None:
            raise DamagedError(
                f"none of the {len(files)} checkpoints in {self.directory} is good. Put back one "
                "from a backup, or move them away to learn again from what the log still holds"
            )
        return newest

    def _compare(self, theirs: dict[str, str], path: Path) -> None:
        if different := [k for k in self.numerics if self.numerics[k] != theirs.get(k)]:
            changes = ", ".join(f"{k} {theirs.get(k)} -> {self.numerics[k]}" for k in different)
            self._warn(
                f"checkpoint {path.name} was written under other numerics ({changes}): "
                "replay from it may differ in the last bits"
            )

    def write(self, copy: Checkpoint) -> Info:
        """Write a checkpoint, and remove those before the last KEPT.

        Raises:
            OSError: the disk is full, or cannot be written; then nothing has changed.
        """
        path = self.directory / (
            f"checkpoint-{copy.progress.epoch:08d}-{copy.progress.cut:014d}.safetensors"
        )
        if path in self._infos and path in self.files():
            return self._infos[path]
        sha256 = copy.sha256()
        raw = encode(copy, sha256, self.numerics)
        write_atomically(self._disk, path, raw)
        info = self._infos[path] = Info(path, copy.version, copy.progress, len(raw), sha256)
        outdated = self.files()[:-KEPT]  # its own too, if a later trainer has written that many
        for old in outdated:
            self._disk.remove(old)
            self._infos.pop(old, None)
        self._seen = sorted({*self._seen, path} - set(outdated))
        return info

    @property
    def newest_bytes(self) -> int:
        """Size of the newest checkpoint that was loaded or written; 0 before the first."""
        known = [self._infos[path] for path in sorted(self._infos)]
        return known[-1].bytes if known else 0

    def oldest(self) -> Progress | None:
        """Return the progress that the log must still reach back to; None if it is not known.

        Its position is the lowest of all files: after a gap, later cuts may lie at lower ids.
        """
        known = [self._infos.get(path) for path in self.files()]
        if not known or None in known:
            return None
        found = [info.progress for info in known if info]
        lowest = min((progress.position for progress in found), key=lambda at: at.entry)
        return replace(min(found, key=lambda progress: progress.cut), position=lowest)


def _unreadable(error: OSError) -> UnreadableError:
    owner = (
        ". They must belong to the user that the service runs as, in its container 10001"
        if isinstance(error, PermissionError)
        else ""
    )
    return UnreadableError(f"the checkpoints cannot be read: {error}{owner}")


def write_atomically(disk: Disk, path: Path, raw: bytes) -> None:
    """Write a file so that after a crash it exists whole or not at all.

    Raises:
        OSError: it could not be written; then no temporary file is left.
    """
    scratch = path.with_name(f"{SCRAP}{uuid.uuid4().hex}")
    try:
        with disk.create(scratch) as file:
            file.write(raw)
            file.sync()
        disk.rename(scratch, path)
    except BaseException:
        disk.remove(scratch)
        raise
    disk.sync(path.parent)
