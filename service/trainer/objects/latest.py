"""``latest.json``: which checkpoint is the newest, and which trainer may name another.

It is replaced only by a process that knows its present version (``If-Match``). A trainer that takes
the log over replaces it before it learns, by the same content with its own epoch: then no request
of an earlier trainer fits any more, not even one that is still on its way.
"""

import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import orjson

from service.log.errors import FencedError
from service.trainer.objects.bucket import Bucket, ChangedError, Found, Tag

Raw = bytes
TRIES = 10
"""How often others may be faster in one change of the object."""


@dataclass(frozen=True)
class Latest:
    """The content of ``latest.json``."""

    epoch: int
    """The trainer of this epoch may name a checkpoint."""
    by: str
    """A random name of that trainer's process."""
    version: int = 0
    """Version of the model in the checkpoint."""
    cut: int = 0
    name: str = ""
    """Name of the checkpoint's object; empty before the first."""
    sha256: str = ""
    """Digest of that object."""
    bytes: int = 0
    """Size of that object."""

    def to_json(self) -> Raw:
        """Return the bytes of the object."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, raw: Raw) -> "Latest":
        """Return the content of the object.

        Raises:
            OSError: it is none.
        """
        try:
            found = orjson.loads(raw)
            return cls(**{name: found[name] for name in cls.__dataclass_fields__})
        except (ValueError, TypeError, KeyError) as error:
            raise OSError(f"latest.json is damaged ({error}): remove it") from error


class Pointer:
    """One process's view of ``latest.json``, and its way to change it.

    Args:
        bucket: holds it.
        name: of the object.
        by: a name that no other process has.
    """

    def __init__(self, bucket: Bucket, name: str, by: str = "") -> None:
        self._bucket, self._name, self._by = bucket, name, by or uuid.uuid4().hex
        self._known: tuple[Latest, Tag] | None = None

    @property
    def newest(self) -> Latest | None:
        """The content that was last read or written; None if there was none."""
        known = self._known
        return known[0] if known else None

    def look(self) -> Latest | None:
        """Read the object if it has changed, and return its content; None if there is none.

        Raises:
            OSError: it cannot be read.
        """
        known = self._known
        try:
            found = self._bucket.read(self._name, known[1] if known else {})
        except FileNotFoundError:
            self._known = None
            return None
        if found is not None:
            return self._note(found)
        return known[0] if known else None

    def claim(self, epoch: int) -> None:
        """Put an epoch into the object, so that no earlier trainer can change it.

        Raises:
            FencedError: a trainer of this or a later epoch has.
            OSError: the store does not answer.
        """

        def wanted(present: Latest | None) -> Latest:
            if present is None:
                return Latest(epoch, self._by)
            if present.epoch > epoch or (present.epoch == epoch and present.by != self._by):
                raise FencedError(
                    f"{self._bucket.url}/{self._name} was claimed in epoch {present.epoch}; mine "
                    f"is {epoch}"
                )
            return replace(present, epoch=epoch, by=self._by)

        self._change(wanted)

    def move(self, latest: Callable[[int, str], Latest], epoch: int) -> None:
        """Name another checkpoint the newest.

        Args:
            latest: returns the content, given an epoch and this process's name.
            epoch: of the trainer that has written the checkpoint.

        Raises:
            FencedError: another trainer has claimed the object since, or named a later checkpoint.
            OSError: the store does not answer; the object may or may not be changed.
        """

        def wanted(present: Latest | None) -> Latest:
            if present is None:
                return latest(epoch, self._by)
            is_own = present.by == self._by
            new = latest(max(epoch, present.epoch) if is_own else epoch, self._by)
            if (present.epoch >= epoch and not is_own) or present.name > new.name:
                raise FencedError(
                    f"{self._bucket.url}/{self._name} names {present.name or 'no checkpoint'} and "
                    f"was claimed in epoch {present.epoch}; mine is {epoch}"
                )
            return new

        self._change(wanted)

    def _change(self, wanted: Callable[[Latest | None], Latest]) -> None:
        """Replace the object by what is wanted in place of its present content."""
        if self._known is None:
            self.look()
        for _ in range(TRIES):
            known = self._known
            new = wanted(known[0] if known else None)
            raw = new.to_json()
            try:
                if known is None:
                    tag = self._bucket.create(self._name, raw)
                else:
                    tag = self._bucket.replace(self._name, raw, known[1])
            except (FileExistsError, ChangedError):
                if self._read_again() == new:  # it was done, and the answer was lost
                    return
            except OSError:
                if self._read_again() == new:
                    return
                raise
            else:
                self._known = new, tag
                return
        raise OSError(f"{self._bucket.url}/{self._name} changes all the time")

    def _read_again(self) -> Latest | None:
        self._known = None
        return self.look()

    def _note(self, found: Found) -> Latest:
        latest = Latest.from_json(found.raw)
        self._known = latest, found.tag
        return latest
