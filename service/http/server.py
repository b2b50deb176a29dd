"""Runs the application: one port, one service, an orderly end."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import uvicorn
from fastapi import APIRouter

from service.fold.drift import detectors
from service.http.app import create_app
from service.http.connection import Connection
from service.log.errors import LogError, Stopped
from service.monitoring.status import Condition
from service.process import keep_freed_memory, raise_descriptor_limit
from service.service import Service
from service.settings import Settings
from streams.errors import FunnelError

logger = logging.getLogger("funnel")

EVERY_INTERFACE = "::"
"""Listens for IPv4 too, where the system can; asyncio alone would take IPv6 only."""
GRACE_SECONDS = 5
"""Longest wait at shutdown for answers that are being sent."""
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
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
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
            if host == EVERY_INTERFACE and socket.has_dualstack_ipv6():
                sockets = [
                    socket.create_server(
                        (host, port), family=socket.AF_INET6, dualstack_ipv6=True,
                        backlog=self.config.backlog,
                    )
                ]  # fmt: skip
            await super().startup(sockets)
        except (SystemExit, OSError) as error:
            reason = error if isinstance(error, OSError) else error.__context__
            raise ListenError(
                f"cannot listen on {_joined(host, port)}: {reason}. Choose another --port, or 0 "
                "for any free one, or another --host"
            ) from error
        finally:
            uvicorn_log.disabled = False
        self.listens.set()

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
    server = Server(
        uvicorn.Config(
            create_app(service, more),
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
    )
    loop = asyncio.get_running_loop()

    def end() -> None:
        if not server.should_exit:
            loop.call_later(CONFIRM_SECONDS, service.give_up)
        service.draining.set()
        server.should_exit = True

    def stop() -> None:
        if not service.draining.is_set():
            logger.info("stopping")
        end()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup lets a process outlive its terminal
            loop.add_signal_handler(number, stop)
    listening = asyncio.create_task(server.serve())
    listening.add_done_callback(lambda _: service.draining.set())
    try:
        await service.unless_stopped(server.listens.wait())
        await _start(service, server.url)
        if started is not None:
            started(service, server.url)
        await service.draining.wait()
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


async def _start(service: Service, url: str) -> None:
    """Start the service, and return when the model has caught up with its log.

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
    logger.info(
        "serving %s on %s: version %d, %d examples learned",
        model.settings.called,
        url,
        status.version,
        status.examples,
    )
