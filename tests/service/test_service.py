"""A service stops as a whole."""

import asyncio
import logging
import resource
from pathlib import Path

import pytest

from service.log.errors import Stopped
from service.service import Service
from service.settings import load_settings
from tests.support.harness import processes_naming


def test_an_essential_task_that_fails_stops_the_service_with_a_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken() -> None:
        raise ValueError("of all things")

    async def run() -> Service:
        service = Service(load_settings({}))
        service.keep_up("the part", broken())
        await asyncio.wait_for(service.draining.wait(), 10)
        await service.stop()
        return service

    assert asyncio.run(run()).broken == "the part has ended: ValueError('of all things')"
    assert "Traceback" in caplog.text


def test_work_that_is_not_done_when_the_service_stops_is_cancelled() -> None:
    async def run() -> None:
        service, ended = Service(load_settings({})), asyncio.Event()

        async def work() -> None:
            try:
                service.draining.set()
                await asyncio.Event().wait()
            finally:
                ended.set()

        with pytest.raises(Stopped):
            await service.unless_stopped(work())
        await asyncio.wait_for(ended.wait(), 10)

    asyncio.run(run())


def test_work_that_is_done_keeps_its_result_and_its_error() -> None:
    async def run() -> None:
        service = Service(load_settings({}))
        assert await service.unless_stopped(asyncio.sleep(0, "done")) == "done"

        async def failing() -> None:
            raise ValueError("wrong")

        with pytest.raises(ValueError, match="wrong"):
            await service.unless_stopped(failing())

    asyncio.run(run())


async def a_start_without_descriptors(directory: Path) -> Service:
    """Start while the process has no descriptor left, and give it some once the start waits."""
    service = Service(load_settings({"data_dir": directory, "features": 4, "classes": 2}))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    waits = asyncio.Event()

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "the start waits" in record.getMessage():
                waits.set()

    notice = Notice()
    logging.getLogger("funnel").addHandler(notice)
    asyncio.get_running_loop().run_in_executor(None, int)  # its thread is there
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        starting = asyncio.ensure_future(service.start())
        await asyncio.wait({asyncio.ensure_future(waits.wait()), starting}, timeout=60,
                           return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        assert waits.is_set()
        assert not starting.done()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        logging.getLogger("funnel").removeHandler(notice)
    await asyncio.wait_for(starting, 60)
    return service


def test_a_start_waits_while_clients_hold_all_descriptors(tmp_path: Path) -> None:
    async def run() -> None:
        service = await a_start_without_descriptors(tmp_path)
        await service.stop()

    asyncio.run(run())
    assert processes_naming(tmp_path) == set()
