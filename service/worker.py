"""A worker: ``python -m service.worker SOCKET NUMBER``, which the service starts.

It ends with its standard input, so never later than the process that has started it.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from service.http.app import create_app
from service.http.server import Server, config_of, run, start
from service.http.workers.forward import Forward
from service.http.workers.messages import of_counts, to_settings, to_upstream
from service.monitoring.logs import configure
from service.monitoring.status import Upstream
from service.process import keep_freed_memory, raise_descriptor_limit
from service.service import Service

logger = logging.getLogger("funnel")

COUNT_SECONDS = 1.0
"""Time between two lines of counts."""


class _Learner:
    """The learner's process, as its worker reads it."""

    def __init__(self, reader: asyncio.StreamReader, upstream: Upstream) -> None:
        self._reader, self.newest = reader, upstream

    async def follow(self) -> None:
        """Read until that process has ended, or wants this one to end."""
        while line := await self._reader.readline():
            self.newest = to_upstream(line)


async def work(socket: Path, number: int, output: int) -> None:
    """Take examples and answer until standard input ends.

    Args:
        socket: of the learner's process, for requests that are forwarded.
        number: of this worker, for messages.
        output: descriptor to which counts are written.
    """
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: protocol, sys.stdin)
    line, status = await reader.readline(), await reader.readline()
    if not status:
        return
    settings, learner = to_settings(line), _Learner(reader, to_upstream(status))
    configure(settings.log_format == "json", settings.log_level)
    keep_freed_memory()
    raise_descriptor_limit()
    service = Service(settings, lambda: learner.newest)
    app = Forward(create_app(service), lambda: service.model, socket)
    server = Server(config_of(app, settings), shares_port=True)
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, service.draining.set)
    following = asyncio.create_task(learner.follow())
    following.add_done_callback(lambda _: service.draining.set())

    @contextlib.asynccontextmanager
    async def counted() -> AsyncIterator[None]:
        await start(service)
        service.keep_up("the counts", _count(service, output))
        logger.info("worker %d takes requests", number)
        yield

    learners = os.getppid()
    try:
        await run(service, server, counted())
    finally:
        _write(service, output)
        if os.getppid() != learners:  # that process was killed, and could not tidy up
            await asyncio.to_thread(shutil.rmtree, socket.parent, ignore_errors=True)


async def _count(service: Service, output: int) -> None:
    """Write the counts of the metrics every second."""
    while True:
        await asyncio.to_thread(_write, service, output)
        await asyncio.sleep(COUNT_SECONDS)


def _write(service: Service, output: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the learner's process has ended
        os.write(output, of_counts(service.metrics.counts()))


if __name__ == "__main__":
    sys.path.append(os.getcwd())  # a model of the user's own may be here
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a model of the user's own may print
    uvloop.run(work(Path(sys.argv[1]), int(sys.argv[2]), output))
