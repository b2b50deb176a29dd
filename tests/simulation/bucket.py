"""Objects in memory that processes share, over a network that loses requests and answers."""

import errno
import hashlib
import random
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from service.trainer.objects.bucket import Bucket, ChangedError, Found, Tag
from service.trainer.objects.latest import Latest
from service.trainer.objects.shared import LATEST
from tests.simulation.disk import Platter, SimulatedDisk
from tests.simulation.oracle import ViolationError
from tests.simulation.server import SimulatedServer

LOSS = 0.04
"""Probability that a request is lost, or an answer, or that a list is an older one."""


class Shelf:
    """The objects of all processes.

    Args:
        platter: keeps them; no power cut reaches it.
        server: of the log.
        violate: called with a broken promise.
    """

    def __init__(
        self,
        platter: Platter,
        server: SimulatedServer,
        violate: Callable[[ViolationError], object],
    ) -> None:
        self.platter, self._server, self._violate = platter, server, violate
        self._named = Latest(0, "")

    def put(self, name: str, raw: bytes) -> None:
        """Write an object, and check it if it names the newest checkpoint."""
        self.platter.put(name, raw)
        if name != LATEST:
            self.platter.created(Path(name), raw)
            return
        before, now = self._named, Latest.from_json(raw)
        self._named = now
        if now.epoch < before.epoch or now.name < before.name:
            self._violate(ViolationError(f"{now} comes after {before}"))
        if now.epoch == before.epoch and now.by != before.by:
            self._violate(ViolationError(f"{now.by} and {before.by} lead in epoch {now.epoch}"))
        epoch, leader = self._server.recorded
        if now.name != before.name and now.epoch < epoch and now.by != leader:
            self._violate(ViolationError(f"{now} is named after {leader} has learned in {epoch}"))
        inode = self.platter.files.get(now.name)
        if now.name != before.name and (
            inode is None or hashlib.sha256(inode.raw).hexdigest() != now.sha256
        ):
            self._violate(ViolationError(f"{now.name} is named, and not as it is"))


class SimulatedBucket(Bucket):
    """One process's way to the objects.

    Args:
        shelf: the objects.
        disk: what is full or broken for it is so for the store, and where it dies the process does.
        rng: draws what is lost.
        is_safe: returns whether nothing is lost any more.
    """

    url = "sim://bucket"

    def __init__(
        self, shelf: Shelf, disk: SimulatedDisk, rng: random.Random, is_safe: Callable[[], bool]
    ) -> None:
        self._shelf, self._disk, self._rng, self._is_safe = shelf, disk, rng, is_safe
        self._listed: list[str] = []

    def names(self, folder: str) -> list[str]:
        self._begin("list")
        if not self._is_lost():
            self._listed = [f"{folder}/{name}" for name in self._shelf.platter.files]
        return [name for name in self._listed if not name.endswith(LATEST)]

    def read(self, name: str, known: Tag | None = None) -> Found | None:
        self._begin("read")
        found = self._at(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", name)
        self._end("read")
        return None if known and known == _tag(found) else Found(found, _tag(found))

    def create(self, name: str, raw: bytes) -> Tag:
        self._begin("create")
        if self._at(name) is not None:
            raise FileExistsError(f"{name} exists")
        return self._put("create", name, raw)

    def replace(self, name: str, raw: bytes, known: Tag) -> Tag:
        self._begin("rename")
        found = self._at(name)
        if found is None or _tag(found) != known:
            raise ChangedError(f"{name} has changed")
        return self._put("rename", name, raw)

    def remove(self, name: str) -> None:
        self._begin("remove")
        own = PurePosixPath(name).name
        if own in self._shelf.platter.files:
            self._shelf.platter.name({own: None})
            self._shelf.platter.sync()
            self._shelf.platter.removed(own)
        self._end("remove")

    def _at(self, name: str) -> bytes | None:
        inode = self._shelf.platter.files.get(PurePosixPath(name).name)
        return None if inode is None else inode.raw

    def _put(self, operation: str, name: str, raw: bytes) -> Tag:
        if self._disk.is_full:
            raise OSError(errno.ENOSPC, "the store takes nothing")
        self._shelf.put(PurePosixPath(name).name, raw)
        self._end(operation)
        return _tag(raw)

    def _begin(self, operation: str) -> None:
        self._disk.before(operation)
        if self._is_lost():
            raise OSError(errno.ETIMEDOUT, "the request was lost")

    def _end(self, operation: str) -> None:
        self._disk.after(operation)
        if self._is_lost():
            raise OSError(errno.ETIMEDOUT, "the answer was lost")

    def _is_lost(self) -> bool:
        return not self._is_safe() and self._rng.random() < LOSS


def _tag(raw: bytes) -> Tag:
    return {"e_tag": hashlib.md5(raw, usedforsecurity=False).hexdigest()}
