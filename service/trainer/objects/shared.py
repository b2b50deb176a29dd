"""The checkpoints of one model in object storage.

Objects are named as files are, and created once. ``latest.json`` names the newest of them (see
`service.trainer.objects.latest`); a later one was written by a trainer that could not name it, or
not yet, and nobody loads it.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from service.trainer.checkpoint import Checkpoint, DamagedError, NewerError, decode
from service.trainer.chunks import NAME as CHUNK_NAME
from service.trainer.chunks import DamagedChunkError, checked
from service.trainer.disk import Storage
from service.trainer.objects.bucket import Bucket
from service.trainer.objects.latest import Latest, Pointer
from service.trainer.store import CheckpointStore, Info, UnreadableError

FOLDER, LATEST = "checkpoints", "latest.json"


class Objects(Storage):
    """Objects as files that are created once.

    Args:
        bucket: holds them.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def make(self, folder: Path) -> None:
        """Do nothing: objects need no folder."""

    def list(self, folder: Path) -> list[Path]:
        return list(map(Path, self._bucket.names(folder.as_posix())))

    def read(self, path: Path) -> bytes:
        found = self._bucket.read(path.as_posix())
        assert found is not None, "no version of it is known"
        return found.raw

    def put(self, path: Path, raw: bytes) -> None:
        name = path.as_posix()
        try:
            self._bucket.create(name, raw)
        except FileExistsError:
            there = self.read(path)
            if there == raw:
                return  # it is a chunk, or the answer to an earlier request was lost
            if _is_good(path.name, there):
                raise
            self._bucket.remove(name)
            self._bucket.create(name, raw)
        except OSError:
            try:
                there = self.read(path)
            except OSError:
                there = b""
            if there != raw:
                raise

    def remove(self, path: Path) -> None:
        self._bucket.remove(path.as_posix())


class SharedStore(CheckpointStore):
    """The checkpoints of one model in object storage.

    Args:
        bucket: holds them.
        model: name of the folder of the model's objects.
        numerics: see `CheckpointStore`.
        warn: see `CheckpointStore`.
        former: checkpoints that are loaded while the bucket has none.
        by: a name that no other process has; by default a random one.
        folder: name of the folder of the checkpoints in that of the model.
        latest: name of the object that names the newest of them.
    """

    needs_claim = True

    def __init__(
        self,
        bucket: Bucket,
        model: str,
        numerics: dict[str, str],
        warn: Callable[[str], None],
        former: CheckpointStore | None = None,
        by: str = "",
        folder: str = FOLDER,
        latest: str = LATEST,
    ) -> None:
        super().__init__(Path(model) / folder, numerics, warn, Objects(bucket))
        self._place, self._former = f"{bucket.url}/{model}", former
        self._pointer = Pointer(bucket, f"{model}/{latest}", by)
        self._unnamed: set[Path] = set()
        """Checkpoints that were written here and not named the newest."""

    @property
    def place(self) -> str:
        return self._place

    @property
    def epoch(self) -> int:
        newest = self._pointer.newest
        return newest.epoch if newest else 0

    @property
    def has_news(self) -> bool:
        """True if another checkpoint is the newest since the last `load` or `write`."""
        newest = self._look()
        if newest is None or not newest.name:
            return super().has_news
        return not self._seen or self._seen[-1].name != newest.name

    def files(self) -> list[Path]:
        """Return the paths of the newest checkpoint and of those before it, oldest first.

        Raises:
            UnreadableError: the store cannot be read.
        """
        found, newest = super().files(), self._pointer.newest
        if newest is None or not newest.name:
            return found
        named = self.directory / newest.name
        return sorted({named, *(path for path in found if path < named)})

    def load(self) -> Checkpoint | None:
        """Return the newest good checkpoint, as `CheckpointStore.load`; without any, the former."""
        self._look()
        found = super().load()
        if found is None and self._former is not None:
            return self._former.load()
        return found

    def _newest_path(self) -> Path | None:
        newest = self._look()
        return self.directory / newest.name if newest and newest.name else None

    def claim(self, epoch: int) -> None:
        try:
            self._pointer.claim(epoch)
        except OSError as error:
            raise UnreadableError(f"the checkpoints cannot be claimed: {error}") from error

    def write(self, copy: Checkpoint) -> Info:
        """Write a checkpoint, and name it the newest, as `CheckpointStore.write`.

        Raises:
            OSError: the store cannot be written; it may or may not have the checkpoint.
            FencedError: another trainer has claimed the place.
        """
        info = super().write(copy)
        for path in self._unnamed - {info.path}:
            self._disk.remove(path)
        self._unnamed.clear()
        return info

    def clear_scraps(self) -> None:
        """Do nothing: an object is whole, and another machine may be writing its chunks."""

    def _look(self) -> Latest | None:
        try:
            return self._pointer.look()
        except OSError as error:
            raise UnreadableError(f"the checkpoints cannot be read: {error}") from error

    def _undo(self, path: Path, chunks: set[str]) -> None:
        """Do nothing: it is not known what the store has; later checkpoints remove the rest."""

    def _announce(self, copy: Checkpoint, path: Path, raw: bytes) -> None:
        """Name a checkpoint the newest; raises as `write` does."""
        sha256, cut = hashlib.sha256(raw).hexdigest(), copy.progress.cut

        def latest(epoch: int, by: str) -> Latest:
            return Latest(epoch, by, copy.version, cut, path.name, sha256, len(raw))

        try:
            self._pointer.move(latest, copy.progress.epoch)
        except OSError:
            self._unnamed.add(path)
            raise


def _is_good(name: str, raw: bytes) -> bool:
    """Return whether an object is a chunk or a checkpoint that is not damaged."""
    try:
        if CHUNK_NAME.fullmatch(name):
            checked(name, raw)
        else:
            decode(raw)
    except (DamagedChunkError, DamagedError):
        return False
    except NewerError:
        return True
    return True
