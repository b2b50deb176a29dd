"""A service stops as a whole."""

import asyncio

import pytest

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
