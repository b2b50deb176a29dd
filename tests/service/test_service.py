"""A service stops as a whole."""

import asyncio

import pytest

from service.log.errors import Stopped
from service.service import Service
from service.settings import load_settings


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
