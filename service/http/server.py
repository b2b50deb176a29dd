"""Runs the application: one port, one service, an orderly end."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import uvicorn
from fastapi import APIRouter
from starlette.types import ASGIApp

from service.fold.drift import detectors
from service.http.app import create_app
from service.http.connection import Connection
from service.http.workers.forward import FORWARDED, Forwarded
from service.http.workers.pool import Workers
from service.log.errors import LogError, Stopped
from service.model import Model
from service.monitoring.status import Condition
from service.process import keep_freed_memory, raise_descriptor_limit
from service.service import Service
from service.settings import Settings
from streams.errors import FunnelError

logger = logging.getLogger("funnel")

EVERY_INTERFACE = "::"
"""Listens for IPv4 too, where the system can; asyncio alone would take IPv6 only."""
ADVICE = "Choose another --port, or 0 for any free one, or another --host"
GRACE_SECONDS = 5
"""Longest wait at shutdown for answers that are being sent."""
SOCKETS = "/tmp"
"""Folder of the socket for workers: the address of a socket may have a hundred bytes."""
STALL_SECONDS = 30
"""A client that reads nothing of its answer for so long is cut off."""
SHUTDOWN_STALL_SECONDS = 2
"""The same during shutdown; and a client that has not sent all of its request by then."""
CONFIRM_SECONDS = 3
"""Longest wait at shutdown for the log to confirm entries."""


class ListenError(FunnelError, OSError):
    """The server cannot listen on its address; the message names it."""


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to `serve`, and that stalled clients cannot hold up.

    Args:
        config: with `Connection` as its protocol.
        shares_port: whether other processes of this user may listen on the same port
            (``SO_REUSEPORT``).
    """

    def __init__(self, config: uvicorn.Config, shares_port: bool = False) -> None:
        super().__init__(config)
        self._shares_port = shares_port
        self.listens = asyncio.Event()
        """Set once connections are accepted."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen.

        Raises:
            ListenError: the address cannot be used.
        """
        host, port = self.config.host, self.config.port
        uvicorn_log = logging.getLogger("uvicorn.error")
        uvicorn_log.disabled = True  # the error has its message
        try:
            if host == EVERY_INTERFACE or self._shares_port:
                sockets = listeners(host, port, self._shares_port, self.config.backlog)
            await super().startup(sockets)
        except (SystemExit, OSError) as error:
            reason = error if isinstance(error, OSError) else error.__context__
            where = _joined(host, port)
            raise ListenError(f"cannot listen on {where}: {reason}. {ADVICE}") from error
        finally:
            uvicorn_log.disabled = False
        self.listens.set()

    async def listen_on(self, path: Path) -> None:
        """Accept connections on a Unix socket, too, which only this user may use.

        Raises:
            OSError: the path cannot be used.
        """

        def connection() -> asyncio.Protocol:
            state = {**self.lifespan.state, FORWARDED: True}
            return Connection(self.config, self.server_state, state)

        loop = asyncio.get_running_loop()
        self.servers.append(await loop.create_unix_server(connection, str(path)))

    async def main_loop(self) -> None:
        """Run until `should_exit` is set."""
        async with self._cutting_off(STALL_SECONDS):
            await super().main_loop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the requests that have arrived, except those of clients that have stalled."""
        asyncio.get_running_loop().call_later(SHUTDOWN_STALL_SECONDS, self._cut_off_unfinished)
        async with self._cutting_off(SHUTDOWN_STALL_SECONDS):
            await super().shutdown(sockets)

    def _cut_off_unfinished(self) -> None:
        """Cut off clients that have not sent all of a request."""
        for connection in list(self.server_state.connections):
            assert isinstance(connection, Connection)
            connection.cut_off_if_unfinished()

    @contextlib.asynccontextmanager
    async def _cutting_off(self, seconds: float) -> AsyncIterator[None]:
        """Cut off clients that read nothing of their answers for so many seconds, meanwhile."""

        async def check() -> None:
            while True:
                for connection in list(self.server_state.connections):
                    assert isinstance(connection, Connection)
                    try:
                        connection.cut_off_if_stalled()
                    except Exception:  # the others must still be checked
                        logger.exception("a connection could not be checked")
                await asyncio.sleep(seconds)

        checking = asyncio.create_task(check())
        try:
            yield
        finally:
            checking.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: `serve` handles the signals, so that the process exits with 0."""
        yield

    @property
    def url(self) -> str:
        """The address that it listens on; only once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{_joined(host, port)}"

    @property
    def port(self) -> int:
        """The port that it listens on; only once it has started."""
        return int(self.servers[0].sockets[0].getsockname()[1])


def listeners(host: str, port: int, is_shared: bool, backlog: int = 1) -> list[socket.socket]:
    """Return sockets that listen on all addresses of a host.

    Args:
        host: a name or an address.
        port: 0 for any free one.
        is_shared: whether other processes of this user may listen on the same port.
        backlog: connections that may wait for each.

    Raises:
        OSError: the address cannot be used.
    """
    is_dual = host == EVERY_INTERFACE and socket.has_dualstack_ipv6()
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
    )
    made: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, at[0]) for family, *_, at in found):
            own = made[0].getsockname()[1] if made else port
            made.append(
                socket.create_server(
                    (str(address), own), family=family, backlog=backlog, reuse_port=is_shared,
                    dualstack_ipv6=is_dual,
                )
            )  # fmt: skip
    except BaseException:
        for each in made:
            each.close()
        raise
    return made


def check_free(host: str, port: int) -> None:
    """Make sure that nobody listens on a port that is to be shared by processes of one service.

    Raises:
        ListenError: somebody does, or the address cannot be used.
    """
    try:
        for each in listeners(host, port, is_shared=False):
            each.close()
    except OSError as error:
        raise ListenError(f"cannot listen on {_joined(host, port)}: {error}. {ADVICE}") from error


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(
    settings: Settings,
    started: Callable[[Service, str], None] | None = None,
    more: Sequence[APIRouter] = (),
) -> None:
    """Serve until a signal to end; then stop intake, finish the batch, checkpoint, and return.

    HTTP is up before the model has started, so that liveness can be checked while it loads.

    Args:
        settings: all of them.
        started: called once with the running service and its address.
        more: further routes.

    Raises:
        FunnelError: the service could not be started.
        RuntimeError: an essential task of the service failed.
    """
    keep_freed_memory()
    raise_descriptor_limit()
    detectors.load()  # now: clients may hold all descriptors later, and it opens files
    service = Service(settings)
    app, shares_port = create_app(service, more), settings.workers > 1
    if shares_port:
        check_free(settings.host, settings.port)
    server = Server(config_of(Forwarded(app) if shares_port else app, settings), shares_port)

    def stop() -> None:
        if not service.draining.is_set():
            logger.info("stopping")
        service.draining.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup lets a process outlive its terminal
            loop.add_signal_handler(number, stop)

    @contextlib.asynccontextmanager
    async def with_workers() -> AsyncIterator[None]:
        model = await start(service)
        _log_start(model, server.url)
        if not shares_port:
            if started is not None:
                started(service, server.url)
            yield
            return
        with tempfile.TemporaryDirectory(prefix="funnel-", dir=SOCKETS) as folder:  # of this user
            path = Path(folder) / "learner.sock"
            await server.listen_on(path)
            workers = Workers(service, server.port, path)
            running = service.keep_up("the workers", workers.run())
            if started is not None:
                started(service, server.url)
            try:
                yield
            finally:
                workers.end()
                await asyncio.wait({running})

    await run(service, server, with_workers())


async def run(service: Service, server: Server, started: AbstractAsyncContextManager[None]) -> None:
    """Listen, start a service, and stop it once it drains.

    Args:
        service: has not started.
        server: listens for its application.
        started: starts the service, and ends what depends on it.

    Raises:
        FunnelError: the service could not be started.
        RuntimeError: an essential task of the service failed.
    """
    listening = asyncio.create_task(server.serve())
    listening.add_done_callback(lambda _: service.draining.set())

    def end() -> None:
        if not server.should_exit:
            asyncio.get_running_loop().call_later(CONFIRM_SECONDS, service.give_up)
        service.draining.set()
        server.should_exit = True

    try:
        await service.unless_stopped(server.listens.wait())
        async with started:
            await service.draining.wait()
            end()
    except Stopped:
        if not listening.done():  # otherwise its error says why
            logger.info("stopped before the start was complete")
    finally:
        end()
        await asyncio.wait({listening})
        await service.stop()
    listening.result()
    if service.broken:
        raise RuntimeError(service.broken)


async def start(service: Service) -> Model:
    """Start a service, and return its model when that has caught up with its log.

    Raises:
        LogError: learning is halted.
        Stopped: the service began to stop first.
    """
    model = await service.caught_up(await service.start())
    status = model.status
    if status.condition == Condition.HALTED:
        raise LogError(status.reason)
    gc.collect()
    gc.freeze()  # what torch and the web framework made stays: a full collection would take 0.2 s
    return model


def config_of(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration.

    Args:
        app: the application.
        settings: name the address.
    """
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=30,
        http=Connection,
        ws="none",
        server_header=False,
    )


def _log_start(model: Model, url: str) -> None:
    status = model.status
    logger.info(
        "serving %s on %s: version %d, %d examples learned",
        model.settings.called,
        url,
        status.version,
        status.examples,
    )
