"""Running the application: one port, one service, an orderly end."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import uvicorn
from fastapi import APIRouter
from torch.jit._trace import TracerWarning

from service.http.app import create_app
from service.http.connection import Connection
from service.log.errors import LogError
from service.process import keep_freed_memory
from service.service import Service, StoppedError
from service.settings import Settings

logger = logging.getLogger("funnel")

GRACE_SECONDS = 5
"""Longest wait at the end for answers that are under way."""
LOOK_SECONDS = 30
"""A client that takes nothing of its answer from one look to the next is cut off."""
LAST_LOOK_SECONDS = 2
"""The same at the end."""
CONFIRM_SECONDS = 3
"""Longest wait at the end for the log to confirm what is under way."""


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to `serve`, says when it listens, and is not held up.

    Args:
        config: with `Connection` as its protocol.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.listens.set()

    async def main_loop(self) -> None:
        """Run until told to stop."""
        async with self._looking(LOOK_SECONDS):
            await super().main_loop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers that are under way end, but not wait for those who do not take theirs."""
        async with self._looking(LAST_LOOK_SECONDS):
            await super().shutdown(sockets)

    @contextlib.asynccontextmanager
    async def _looking(self, seconds: float) -> AsyncIterator[None]:
        async def look() -> None:
            while True:
                for connection in list(self.server_state.connections):
                    assert isinstance(connection, Connection)
                    try:
                        connection.look()
                    except Exception:  # the others are looked at
                        logger.exception("a connection could not be looked at")
                await asyncio.sleep(seconds)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: `serve` sees the signals, and exits with 0 after them."""
        yield

    @property
    def url(self) -> str:
        """Where it listens; only once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    settings: Settings,
    started: Callable[[Service, str], None] | None = None,
    more: Sequence[APIRouter] = (),
) -> None:
    """Serve until SIGINT or SIGTERM: then stop intake, finish the batch, checkpoint, return.

    HTTP is up before the service is, so that liveness can be asked while it loads.

    Args:
        settings: all of them.
        started: called once with the running service and its address.
        more: routes beside those of every service.

    Raises:
        LogError, OSError and those of `Service.start`: it could not be started.
        RuntimeError: a part of it ended that it cannot do without.
    """
    keep_freed_memory()
    # `funnel.graphs.traced` ignores it too, but what that sets is undone by any other thread's.
    warnings.filterwarnings("ignore", category=TracerWarning)
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

    def stop() -> None:
        if not service.draining.is_set():
            logger.info("stopping")
            loop.call_later(CONFIRM_SECONDS, service.give_up)
        service.draining.set()
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    listening = asyncio.create_task(_listen(server))
    try:
        starting = asyncio.create_task(_start(service, server, listening))
        draining = asyncio.create_task(service.draining.wait())
        await asyncio.wait({starting, draining}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if starting.done():
            await starting
            if started is not None and not service.draining.is_set():
                started(service, server.url)
        else:
            await asyncio.wait({starting})
            if not isinstance(error := starting.exception(), StoppedError | None):
                raise error
        await asyncio.wait(
            {listening, asyncio.ensure_future(service.draining.wait())},
            return_when=asyncio.FIRST_COMPLETED,
        )
        server.should_exit = True
        await listening
    finally:
        stop()
        await asyncio.gather(listening, return_exceptions=True)
        await service.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if service.broken:
        raise RuntimeError(service.broken)


async def _listen(server: Server) -> None:
    try:
        await server.serve()
    except SystemExit:
        raise OSError(
            f"cannot listen on {server.config.host}:{server.config.port}; is it taken?"
        ) from None


async def _start(service: Service, server: Server, listening: "asyncio.Task[None]") -> None:
    listens = asyncio.create_task(server.listens.wait())
    await asyncio.wait({listens, listening}, return_when=asyncio.FIRST_COMPLETED)
    if not listens.done():
        listens.cancel()
        await listening  # raises why not
        return
    await service.start()
    assert service.learner is not None
    caught_up = asyncio.create_task(asyncio.to_thread(service.learner.caught_up.wait))
    draining = asyncio.create_task(service.draining.wait())
    await asyncio.wait({caught_up, draining}, return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    if not caught_up.done():
        return  # told to stop while the log cannot be reached
    if service.learner.status.condition == "halted":
        raise LogError(service.learner.status.reason)
    gc.collect()
    gc.freeze()  # what torch and the web framework made stays: a full collection takes 0.2 s else
    logger.info(
        "serving %s on %s: version %d, %d examples learned",
        service.settings.model,
        server.url,
        service.learner.status.version,
        service.learner.status.examples,
    )
