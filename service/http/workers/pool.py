"""Starts the workers, tells them how learning is, and adds up what they count."""

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from service.http.workers.messages import of_settings, of_status, to_counts
from service.model import Model
from service.service import Service
from streams.errors import FunnelError

logger = logging.getLogger("funnel")

COMMAND = (sys.executable, "-P", "-m", "service.worker")
TELL_SECONDS = 0.1
"""Time between two looks whether the status has changed."""
RETRY_SECONDS, MOST_RETRY_SECONDS = 0.5, 30.0
"""Time before a worker that has ended starts again, which doubles each time; and its limit."""
LASTING_SECONDS = 60.0
"""A worker that ran for so long starts again after the shortest time."""
END_SECONDS = 5.0
"""Longest wait for a worker to finish its requests."""
HUNG_SECONDS = 30.0
"""A worker that writes no counts for so long is killed, and starts again."""
LINE_BYTES = 4 << 20
"""Most bytes of a line that a worker writes."""


class HungError(FunnelError):
    """A worker that does nothing any more."""


class Workers:
    """The workers of one service.

    Args:
        service: has started.
        port: on which they listen, too.
        socket: on which the service's own process takes what they forward.
    """

    def __init__(self, service: Service, port: int, socket: Path) -> None:
        self._service, self._port, self._socket = service, port, str(socket)
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Keep all workers running until `end` is called, and then until they have ended."""
        async with asyncio.TaskGroup() as group:
            for number in range(1, self._service.settings.workers):
                group.create_task(self._keep(number), name=f"worker {number}")

    def end(self) -> None:
        """Let all workers finish their requests and end."""
        self._ending.set()

    async def _keep(self, number: int) -> None:
        """Keep one worker running."""
        loop, wait = asyncio.get_running_loop(), RETRY_SECONDS
        while not self._ending.is_set():
            began = loop.time()
            try:
                status = await self._run(number)
            except OSError as error:
                failure = f"cannot be started: {error}"
            else:
                failure = f"has ended with status {status}"
            if self._ending.is_set():
                return
            if loop.time() - began > LASTING_SECONDS:
                wait = RETRY_SECONDS
            logger.error("worker %d %s; it starts again in %g s", number, failure, wait)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), wait)
            wait = min(2 * wait, MOST_RETRY_SECONDS)

    async def _run(self, number: int) -> int | None:
        """Run a worker until it ends, and return its exit status.

        Raises:
            OSError: the system starts no process.
        """
        process = await asyncio.create_subprocess_exec(
            *COMMAND, self._socket, str(number), stdin=PIPE, stdout=PIPE, limit=LINE_BYTES,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C in a terminal is for the service as a whole
        )  # fmt: skip
        try:
            await self._talk(number, process)
        finally:
            await _ended(process)
            self._service.metrics.workers.end(number)
        return process.returncode

    async def _talk(self, number: int, process: Process) -> None:
        """Write to a worker and read from it, until one of the two ends."""
        talks = {
            asyncio.create_task(self._tell(process)),
            asyncio.create_task(self._count_up(number, process)),
        }
        try:
            done, _ = await asyncio.wait(talks, return_when=asyncio.FIRST_COMPLETED)
            for error in filter(None, (task.exception() for task in done)):
                logger.error("worker %d is stopped: %s", number, error or repr(error))
        finally:
            for task in talks:
                task.cancel()
            await asyncio.gather(*talks, return_exceptions=True)

    async def _tell(self, process: Process) -> None:
        """Write the settings, and then the status when it changes, until the end."""
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(self._settings())
            newest = b""
            while not self._ending.is_set():
                if (line := of_status(self._model.status)) != newest:
                    process.stdin.write(line)
                    await process.stdin.drain()
                    newest = line
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), TELL_SECONDS)

    @property
    def _model(self) -> Model:
        assert self._service.model is not None, "the service has started"
        return self._service.model

    def _settings(self) -> bytes:
        """Return the settings of a worker."""
        return of_settings(
            self._service.settings,
            role="intake" if self._service.settings.role == "intake" else "predict",
            workers=1,
            snapshot_every="",
            port=self._port,
            model=self._model.settings.model,
            redis_url=self._service.url,
        )

    async def _count_up(self, number: int, process: Process) -> None:
        """Read the counts of a worker until it ends.

        Raises:
            HungError: it has taken requests, and writes no counts any more.
            ValueError: it writes something else.
        """
        assert process.stdout is not None
        limit: float | None = None  # it may compile its loops first
        while True:
            try:
                line = await asyncio.wait_for(process.stdout.readline(), limit)
            except TimeoutError:
                raise HungError(f"it has written nothing for {HUNG_SECONDS:g} s") from None
            if not line:
                return
            self._service.metrics.workers.note(number, to_counts(line))
            limit = HUNG_SECONDS


async def _ended(process: Process) -> None:
    """Wait for a process to end; kill it if that takes too long."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), END_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
