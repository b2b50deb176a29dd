"""Objects by name, in S3, Google Cloud Storage, Azure Blob Storage or a folder, by `obstore`.

An object is created once, or replaced only by a caller that knows its present version: so of two
processes that do the same, one gets an error.
"""

import errno
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from service.trainer.store import UnreadableError
from streams.errors import FunnelError

if TYPE_CHECKING:
    from obstore import GetOptions, UpdateVersion
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

Tag = Mapping[str, str]
"""The version of an object, as a store names it."""

ENVIRONMENT = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
"""The start of the environment's variables that hold credentials, by the scheme of a URL."""
ALLOW_HTTP = "_ALLOW_HTTP"
"""The end of the variable that allows a server without TLS."""
QUICK_SECONDS, LONG_SECONDS = 4, 300
"""Longest time of one request for a small object, and for any other."""
CONNECT_SECONDS = 2
SMALL_BYTES = 1 << 16


class AddressError(FunnelError, ValueError):
    """An address at which no objects can be kept; the message says what is wrong with it."""


class ChangedError(OSError):
    """An object is not in the version that the caller knows; it may be in one that it wrote."""


class Found(NamedTuple):
    """An object."""

    raw: bytes
    tag: Tag


class Bucket(Protocol):
    """Objects by name. Every method raises OSError where the store cannot be used.

    After an OSError that is none of those below, an object may or may not be written.
    """

    url: str
    """The address of the objects, without secrets."""

    def names(self, folder: str) -> list[str]:
        """Return the names of all objects in a folder, with its name; new ones may be missing."""

    def read(self, name: str, known: Tag | None = None) -> Found | None:
        """Return an object, or None if it is still in a version that is known.

        Args:
            name: of the object.
            known: the version; empty for none of a small object, whose requests end sooner.

        Raises:
            FileNotFoundError: there is none.
        """

    def create(self, name: str, raw: bytes) -> Tag:
        """Write an object.

        Raises:
            FileExistsError: there is one.
        """

    def replace(self, name: str, raw: bytes, known: Tag) -> Tag:
        """Write another version of an object that is in a known one.

        Raises:
            ChangedError: it is not in that version.
        """

    def remove(self, name: str) -> None:
        """Remove an object; do nothing if there is none."""


class StoredBucket(Bucket):
    """Objects in a store.

    Args:
        url: of the store, without secrets.
        store: the store.
        quick: the same store for small objects, whose requests end sooner.
        hint: what to check if the store cannot be used.
    """

    def __init__(self, url: str, store: "ObjectStore", quick: "ObjectStore", hint: str) -> None:
        self.url, self._store, self._quick, self._hint = url, store, quick, hint

    def names(self, folder: str) -> list[str]:
        from obstore import list as list_objects

        with self._told():
            found = list_objects(self._quick, prefix=folder)
            return [meta["path"] for chunk in found for meta in chunk]

    def read(self, name: str, known: Tag | None = None) -> Found | None:
        from obstore import get
        from obstore.exceptions import NotModifiedError

        store = self._quick if known is not None else self._store
        options: GetOptions = {"if_none_match": known["e_tag"]} if known else {}
        with self._told(name):
            try:
                got = get(store, name, options=options)
                return Found(got.bytes().to_bytes(), _tag(got.meta))
            except NotModifiedError:
                return None

    def create(self, name: str, raw: bytes) -> Tag:
        from obstore import put
        from obstore.exceptions import AlreadyExistsError

        store = self._quick if len(raw) <= SMALL_BYTES else self._store
        with self._told(name):
            try:
                return _tag(put(store, name, raw, mode="create"))
            except AlreadyExistsError:
                raise FileExistsError(f"{self.url}/{name} exists") from None

    def replace(self, name: str, raw: bytes, known: Tag) -> Tag:
        from obstore import put
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._told(name):
            try:
                version = cast("UpdateVersion", dict(known))
                return _tag(put(self._quick, name, raw, mode=version))
            except (AlreadyExistsError, PreconditionError):  # S3 answers 409 to two at a time
                raise ChangedError(f"{self.url}/{name} has changed") from None

    def remove(self, name: str) -> None:
        from obstore import delete

        with self._told():
            try:
                delete(self._quick, name)
            except FileNotFoundError:
                return

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        """Turn an error of the store into one that says what happened and what to do."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, f"{self.url} has no such object", name) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            reason = f"{self.url} refuses what was asked of it: {_reason(error)}. {self._hint}"
            raise OSError(reason) from None
        except BaseError as error:
            reason = f"{self.url} cannot be used now: {_reason(error)}. {self._hint}"
            raise OSError(reason) from None


class FolderBucket(StoredBucket):
    """Objects as files in a folder, for processes of one machine, or of several that mount it.

    The library's own store for folders cannot replace an object on a condition and does not sync.

    Args:
        url: of the folder.
        store: the store.
        folder: its path.
    """

    def __init__(self, url: str, store: "ObjectStore", folder: Path) -> None:
        super().__init__(url, store, store, "Is the folder there, and may the service write it?")
        self._folder = folder

    def create(self, name: str, raw: bytes) -> Tag:
        tag = super().create(name, raw)
        self._sync(self._folder / name)
        return tag

    def replace(self, name: str, raw: bytes, known: Tag) -> Tag:
        from obstore import head, put

        with self._told(name), self._alone():
            if _tag(head(self._store, name)) != known:
                raise ChangedError(f"{self.url}/{name} has changed")
            tag = _tag(put(self._store, name, raw, use_multipart=False))
            self._sync(self._folder / name)
            return tag

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other process replace an object meanwhile."""
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _sync(self, path: Path) -> None:
        """Return when a file and its name outlast a power cut."""
        for each in (path, *path.relative_to(self._folder).parents):
            descriptor = os.open(self._folder / each, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def open_bucket(url: str) -> Bucket:
    """Return the objects at an address; credentials come from the environment.

    Args:
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix`` or
            ``file:///folder``.

    Raises:
        AddressError: the store cannot be addressed like that.
        OSError: a folder cannot be created.
    """
    from datetime import timedelta

    from obstore.exceptions import BaseError
    from obstore.store import LocalStore, from_url

    url = url.rstrip("/")
    scheme, _, path = url.partition("://")
    if scheme == "file":
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return FolderBucket(url, LocalStore(folder), folder)
    start = ENVIRONMENT[scheme]
    hint = f"Check the bucket's name, the network and the {start}_ variables of the service"
    allows_http = os.environ.get(start + ALLOW_HTTP, "").lower() in ("true", "1")

    def opened(seconds: int, tries: int) -> "ObjectStore":
        client: ClientConfig = {
            "timeout": timedelta(seconds=seconds),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "allow_http": allows_http,
        }
        retry: RetryConfig = {
            "max_retries": tries - 1,
            "retry_timeout": timedelta(seconds=seconds),
        }
        return from_url(url, client_options=client, retry_config=retry)

    try:
        return StoredBucket(url, opened(LONG_SECONDS, 4), opened(QUICK_SECONDS, 2), hint)
    except (BaseError, ValueError) as error:
        raise AddressError(f"{url} cannot be used: {_reason(error)}. {hint}") from None


def has_objects(url: str, folder: str) -> bool:
    """Return whether there are objects in a folder at an address.

    Raises:
        UnreadableError: it cannot be reached.
    """
    bucket = open_bucket(url)
    try:
        return bool(bucket.names(folder))
    except OSError as error:
        raise UnreadableError(f"the checkpoints cannot be read: {error}") from error


def _tag(meta: Mapping[str, object]) -> Tag:
    return {key: str(meta[key]) for key in ("e_tag", "version") if meta.get(key) is not None}


def _reason(error: Exception) -> str:
    """Return the short reason in an error of the library, without addresses or bodies: an address
    may be signed."""
    line = str(error).partition("\n")[0].rpartition(" - ")[2].partition(": <")[0]
    return re.sub(r"\S*://\S*", "…", line).strip(" :")
