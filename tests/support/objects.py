"""Object storage for tests: a real S3 server, stores in memory and folders, and one with faults."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from obstore.store import MemoryStore

from service.trainer.objects.bucket import Bucket, Found, StoredBucket, Tag
from tests.support.harness import START_SECONDS, free_port, wait_for

T = TypeVar("T")


WEED = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


@dataclass
class S3Process:
    """SeaweedFS with its S3 gateway, on loopback."""

    directory: Path
    ports: list[int] = field(default_factory=lambda: [free_port() for _ in range(8)])
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a client reaches it."""
        url = f"http://127.0.0.1:{self.ports[0]}"
        return KEYS | {"AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true"}

    def start(self) -> "S3Process":
        """Start it and wait until it stores; the bucket is called ``bucket``."""
        assert WEED is not None
        self.directory.mkdir(parents=True, exist_ok=True)
        names = (
            "s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port",
            "volume.port.grpc", "filer.port", "filer.port.grpc",
        )  # fmt: skip
        chosen = dict(zip(names, self.ports, strict=True)) | {
            "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "dir": self.directory,
            "filer.localSocket": self.directory / "filer.sock",
            "s3.localSocket": self.directory / "s3.sock", "s3.port.iceberg": 0, "s3.port.lance": 0,
            "master.telemetry": "false", "master.volumeSizeLimitMB": 64, "volume.max": 4,
            "volume.preStopSeconds": 0, "filer": "true", "s3": "true",
        }  # fmt: skip
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [WEED, "server", *(f"-{name}={value}" for name, value in chosen.items())],
                cwd=self.directory,
                env=os.environ | KEYS,  # its only user
                stdout=log,
                stderr=log,
            )
        wait_for(self._stores, START_SECONDS)
        return self

    def _stores(self) -> bool:
        """Store a byte: a server that has just started takes some seconds for its first."""
        with contextlib.suppress(OSError), pytest.MonkeyPatch.context() as patch:
            bucket = self.bucket(patch, "s3://bucket/ready")
            bucket.create(str(time.monotonic_ns()), b"x")
            return True
        return False

    def bucket(self, patch: pytest.MonkeyPatch, url: str) -> Bucket:
        """Return the objects at an address of this server."""
        from service.trainer.objects.bucket import open_bucket

        for name, value in self.environment.items():
            patch.setenv(name, value)
        return open_bucket(url)

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let it take connections and answer nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)  # all its threads stand
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it; `start` starts it again with what it has stored."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def in_memory(store: MemoryStore | None = None) -> StoredBucket:
    """Return objects in memory."""
    store = store or MemoryStore()
    return StoredBucket("memory://test", store, store, "It is in memory.")


class FaultyBucket(Bucket):
    """One process's way to objects: requests get lost, and so do answers.

    Args:
        bucket: the objects.
        fault: called with each operation; it returns ``lost``, ``unanswered``, ``late`` (done only
            after a later request), ``stale`` (a list without the newest names), or nothing.
    """

    def __init__(self, bucket: Bucket, fault: Callable[[str], str]) -> None:
        self.url, self._bucket, self._fault = bucket.url, bucket, fault
        self._late: list[Callable[[], object]] = []
        self._listed: list[str] = []

    def names(self, folder: str) -> list[str]:
        fault, known = self._fault("names"), self._listed
        if fault and fault != "stale":
            raise OSError("the request was lost")
        self._listed = self._bucket.names(folder)
        return known if fault == "stale" else self._listed

    def read(self, name: str, known: Tag | None = None) -> Found | None:
        return self._call("read", lambda: self._bucket.read(name, known))

    def create(self, name: str, raw: bytes) -> Tag:
        return self._call("create", lambda: self._bucket.create(name, raw))

    def replace(self, name: str, raw: bytes, known: Tag) -> Tag:
        return self._call("replace", lambda: self._bucket.replace(name, raw, known))

    def remove(self, name: str) -> None:
        self._call("remove", lambda: self._bucket.remove(name))

    def _call(self, operation: str, execute: Callable[[], T]) -> T:
        fault = self._fault(operation)
        if fault in ("lost", "late"):
            if fault == "late":
                self._late.append(execute)
            raise OSError("the request was lost")
        result = execute()
        late, self._late = self._late, []
        for each in late:
            with contextlib.suppress(OSError):
                each()
        if fault == "unanswered":
            raise OSError("the answer was lost")
        return result
