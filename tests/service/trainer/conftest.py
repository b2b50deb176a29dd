"""A log in memory."""

import pytest

from tests.support.memory_log import MemoryLog, MemoryServer


@pytest.fixture
def memory() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def log(memory: MemoryServer) -> MemoryLog:
    return MemoryLog(memory)
