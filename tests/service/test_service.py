"""What keeps a service together."""

import asyncio

import pytest

from service.service import Service
from service.settings import load_settings


def test_a_part_that_ends_takes_the_service_along_and_says_why(
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
