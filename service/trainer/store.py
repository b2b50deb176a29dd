"""The checkpoints of one model in one place, each written whole or not at all.

Files are named by epoch and cut and never overwritten. The chunks that they need are next to them
(see `service.trainer.chunks`): they are written before, and removed after the last checkpoint that
needs them.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from service.log.position import Progress
from service.trainer.blocks import Bytes
from service.trainer.checkpoint import (
    STEPS,
    Checkpoint,
    DamagedError,
    NewerError,
    decode,
    encode,
)
from service.trainer.chunks import NAME as CHUNK_NAME
from service.trainer.chunks import SIDES, DamagedChunkError, Ledger, Manifest, checked
from service.trainer.disk import SCRAP, Storage, SystemDisk
from streams.errors import FunnelError

KEPT = 3
"""Files kept in a directory; the log is trimmed up to the oldest."""
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
    """Bytes that were written for it."""
    sha256: str
    chunks: frozenset[str] = frozenset()
    """Names of the chunks that it needs."""


class CheckpointStore:
    """The checkpoints of one model in one directory.

    Processes that use the same directory need no more than its names to find the newest one; what
    they need elsewhere, `service.trainer.objects.shared` has.

    Args:
        directory: created if it does not exist.
        numerics: recorded in every file (see `service.trainer.checkpoint.numerics`).
        warn: called with a message about a damaged file or differing numerics.
        disk: that of the directory; the file system by default.
    """

    def __init__(
        self,
        directory: Path,
        numerics: dict[str, str],
        warn: Callable[[str], None],
        disk: Storage | None = None,
    ) -> None:
        self.directory, self.numerics, self._warn = directory, numerics, warn
        self._disk = disk or SystemDisk()
        self._disk.make(directory)
        self._infos: dict[Path, Info] = {}
        self._seen: list[Path] = []
        self._unread: dict[Path, OSError] = {}
        self.ledger = Ledger()
        """The content of the chunks."""
        self._good: set[str] = set()
        """Chunks that were read or written, and were good."""
        self._unneeded: set[str] = set()
        """Chunks that no checkpoint needed when the last one was written."""
        self._turn = 0
        """How often a chunk of a base was checked; sides take turns."""

    @property
    def place(self) -> str:
        """The place of the checkpoints, for people."""
        return str(self.directory.absolute())

    @property
    def epoch(self) -> int:
        """The highest epoch that the place is known to have been claimed with; 0 without claims."""
        return 0

    needs_claim = False
    """True if a trainer has to claim the place, with its epoch, before it writes."""

    def claim(self, epoch: int) -> None:
        """Let no trainer of an earlier epoch name a checkpoint of its own the newest any more.

        Raises:
            FencedError: a trainer of this or a later epoch has claimed the place.
            UnreadableError: the place cannot be reached.
        """

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

    def make(self) -> None:
        """Create the directory if it is gone."""
        self._disk.make(self.directory)

    def clear(self) -> None:
        """Remove all checkpoints, which are of another log."""
        for path in self.files():
            self._disk.remove(path)
            self._infos.pop(path, None)
        self._seen = []

    def clear_scraps(self) -> None:
        """Remove the scraps of killed writers; only while no process writes."""
        for path in self._paths():
            if path.name.startswith(SCRAP):
                self._disk.remove(path)
        self._unneeded |= {each.name for each in self._paths()}  # nobody has just written them
        self._clear_chunks()

    def load(self) -> Checkpoint | None:
        """Return the newest good checkpoint, or None if there never was one.

        Raises:
            DamagedError: there are files, but none of them is good.
            UnreadableError: none of them is good, and some cannot be read.
        """
        newest: Checkpoint | None = None
        known, self._unread = self._unread, {}
        files = self._seen = self.files()
        found: list[Manifest] = []
        for path in reversed(files):
            try:
                raw = self._disk.read(path)
                decoded = decode(raw)
                if newest is None:
                    copy = decoded.whole(self._read_chunk)
                else:
                    copy = decoded.copy
                    self._look_at_chunks(decoded.manifest)
            except FileNotFoundError as error:
                if path in self.files():
                    name = Path(error.filename or "").name
                    self._warn(f"checkpoint {path.name} is damaged and skipped: {name} is missing")
                # otherwise the trainer that this process stands by for has removed it
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
                self._infos[path] = _info(
                    path, copy, decoded.metadata["sha256"], decoded.manifest, len(raw)
                )
                found += [decoded.manifest] if decoded.manifest else []
                if newest is None:
                    newest = copy
                    self._compare(decoded.metadata["numerics"], path)
        if self._unread and newest is None:
            self._seen = []  # so that they count as news
            raise _unreadable(next(iter(self._unread.values())))
        if files and newest is None:
            if self.files() != files:
                return self.load()  # they were removed when others had been written
            raise DamagedError(
                f"none of the {len(files)} checkpoints in {self.place} is good. Put back one "
                "from a backup, or move them away to learn again from what the log still holds"
            )
        self.ledger.manifests = {}  # what is damaged is written again
        for manifest in reversed(found):
            self.ledger.take(manifest)
        return newest

    def newest_name(self) -> str:
        """Return the name of the newest checkpoint, which sorts after those before; empty without.

        Raises:
            UnreadableError: the place cannot be read.
        """
        newest = self._newest_path()
        return newest.name if newest else ""

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint, and look at no other, for a process that only reads.

        Returns:
            None if there is none, or it was the last one that was loaded.

        Raises:
            DamagedError: it is damaged.
            UnreadableError: it cannot be read, or not by this version.
        """
        path = self._newest_path()
        if path is None or self._seen[-1:] == [path]:
            return None
        try:
            found = decode(self._disk.read(path)).whole(self._read_chunk)
        except FileNotFoundError:
            return None  # its writer has replaced it since
        except NewerError as error:
            raise UnreadableError(f"{path.name} cannot be read: {error}") from error
        except DamagedError as error:
            raise DamagedError(f"{path.name} in {self.place} is damaged: {error}") from error
        except OSError as error:
            raise _unreadable(error) from error
        self._seen = [path]
        return found

    def _newest_path(self) -> Path | None:
        return max(self.files(), default=None)

    def _read_chunk(self, name: str) -> bytes:
        raw = self._disk.read(self.directory / name)
        self._good.discard(name)
        checked(name, raw)
        self._good.add(name)
        return raw

    def _look_at_chunks(self, manifest: Manifest | None) -> None:
        """Read the chunks of a checkpoint that were not read yet.

        Raises:
            DamagedError, OSError: one of them is not good.
        """
        self._good &= {each.name for each in self._paths()}
        try:
            for name in (manifest.chunks if manifest else frozenset[str]()) - self._good:
                self._read_chunk(name)
        except DamagedChunkError as error:
            raise DamagedError(str(error)) from error

    def _compare(self, theirs: dict[str, str], path: Path) -> None:
        mine = dict(self.numerics)
        if STEPS not in theirs:  # it began before there were compiled steps, and goes on without
            mine.pop(STEPS, None)
        if different := [k for k in mine if mine[k] != theirs.get(k)]:
            changes = ", ".join(f"{k} {theirs.get(k)} -> {mine[k]}" for k in different)
            self._warn(
                f"checkpoint {path.name} was written under other numerics ({changes}): "
                "replay from it may differ in the last bits"
            )

    def write(self, copy: Checkpoint) -> Info:
        """Write a checkpoint, and remove those before the last KEPT, and the chunks of others.

        Raises:
            OSError: the disk is full, or cannot be written; then nothing has changed.
        """
        path = self.directory / (
            f"checkpoint-{copy.progress.epoch:08d}-{copy.progress.cut:014d}.safetensors"
        )
        if path in self._infos and path in self.files():
            return self._infos[path]
        before = {each.name for each in self._paths()}
        written: list[str] = []
        try:
            info = self._infos[path] = self._write(copy.apart(self.ledger), path, written)
        except OSError:
            with contextlib.suppress(OSError):
                self._undo(path, set(written) - before)
            raise
        outdated = self.files()[:-KEPT]  # its own too, if a later trainer has written that many
        for old in outdated:
            self._disk.remove(old)
            self._infos.pop(old, None)
        self._seen = sorted({*self._seen, path} - set(outdated))
        self._clear_chunks()
        return info

    def _undo(self, path: Path, chunks: set[str]) -> None:
        """Remove the chunks that a checkpoint was to bring, unless it is there."""
        if path not in self.files():
            for name in chunks:
                self._disk.remove(self.directory / name)

    def _announce(self, copy: Checkpoint, path: Path, raw: bytes) -> None:
        """Let other processes find a checkpoint that is whole; its name alone does that here."""

    def _write(self, copy: Checkpoint, path: Path, written: list[str]) -> Info:
        """Write what has changed of large tables, and then the checkpoint.

        Args:
            copy: with these tables apart.
            path: its name.
            written: the names of the chunks are added.

        Raises:
            OSError: as `write`; or another process has removed chunks that are still needed.
        """

        def write(name: str, raw: bytes) -> None:
            written.append(name)
            self._disk.put(self.directory / name, raw)
            self._good.add(name)

        manifest, digests = None, dict[str, Bytes]()
        if copy.tables:
            manifest = self.ledger.write(copy.tables, write)
            digests = {start: base.digests for start, base in manifest.tables.items()}
            self._check_base(manifest, written)
        sha256 = copy.sha256(digests)
        raw = encode(copy, sha256, self.numerics, manifest)
        self._disk.put(path, raw)
        self._announce(copy, path, raw)
        if manifest:
            self.ledger.take(manifest)
        return _info(path, copy, sha256, manifest, len(raw))

    def _check_base(self, manifest: Manifest, written: list[str]) -> None:
        """Check that the chunks of earlier checkpoints are there, and that one of them is good.

        Args:
            manifest: of the checkpoint to come.
            written: names of its new chunks.

        Raises:
            OSError: they are not, or it is not; the next checkpoint will do without all of them.
        """
        missing = manifest.chunks - {each.name for each in self._paths()}
        older, what = sorted(manifest.chunks - set(written)), ""
        if missing:
            what = f"{min(missing)} is missing"
        elif older:
            self._turn += 1
            try:
                self._read_chunk(older[self._turn // len(SIDES) % len(older)])
            except (DamagedChunkError, FileNotFoundError) as error:
                what = str(error)
        if what:
            self.ledger.manifests.pop(manifest.side, None)
            raise OSError(f"of earlier checkpoints, {what}; the next one writes it again")

    def _clear_chunks(self) -> None:
        """Remove the chunks that no checkpoint needs, and needed when the last one was written.

        A chunk that is not needed yet may be one that another trainer has just written.
        """
        chunks = {each.name for each in self._paths() if CHUNK_NAME.fullmatch(each.name)}
        if not chunks:
            return
        needed: set[str] = set()
        for path in self.files():
            try:
                needed |= self._chunks_of(path)
            except (OSError, FunnelError):  # it may need any
                return
        unneeded = chunks - needed
        for name in unneeded & self._unneeded:
            self._disk.remove(self.directory / name)
            self._good.discard(name)
        self._unneeded = unneeded - self._unneeded

    def _chunks_of(self, path: Path) -> frozenset[str]:
        if path in self._infos:
            return self._infos[path].chunks
        manifest = decode(self._disk.read(path)).manifest  # of another trainer
        return manifest.chunks if manifest else frozenset()

    def known(self) -> list[Info]:
        """Return the checkpoints that were written here, or loaded and good, oldest first."""
        return [self._infos[path] for path in sorted(self._infos)]

    def read(self, path: Path) -> Checkpoint:
        """Return one of the checkpoints, with all rows; raises as `whole` does."""
        return decode(self._disk.read(path)).whole(self._read_chunk)

    def whole(self, info: Info) -> bytes:
        """Return the bytes of a checkpoint with all rows of its tables in it.

        Raises:
            DamagedError: it is damaged.
            OSError: it cannot be read.
        """
        raw = self._disk.read(info.path)
        decoded = decode(raw)
        if decoded.manifest is None:
            return raw
        return encode(decoded.whole(self._read_chunk), info.sha256, decoded.metadata["numerics"])

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


def cut_of(name: str) -> int:
    """Return the cut of a checkpoint by its name; 0 for any other name."""
    found = NAME.fullmatch(name)
    return int(found[2]) if found else 0


def _info(path: Path, copy: Checkpoint, sha256: str, manifest: Manifest | None, size: int) -> Info:
    if manifest is None:
        return Info(path, copy.version, copy.progress, size, sha256)
    written = size + manifest.written
    return Info(path, copy.version, copy.progress, written, sha256, manifest.chunks)


def _unreadable(error: OSError) -> UnreadableError:
    owner = (
        ". They must belong to the user that the service runs as, in its container 10001"
        if isinstance(error, PermissionError)
        else ""
    )
    return UnreadableError(f"the checkpoints cannot be read: {error}{owner}")
