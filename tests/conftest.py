"""For every test: seeds, a skip with a reason where there is no GPU, no deadline for examples."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.support.skips import Skips, read
from tests.support.states import forget_traces

collect_ignore = ["benchmarks/litserve_peer.py"]  # it needs the extra `bench`

settings.register_profile("unhurried", deadline=None)  # machines are shared and slow
settings.load_profile("unhurried")

# A shell ignores Ctrl-C in what it starts in the background, and programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI"):
        config.pluginmanager.register(Skips(read(Path(__file__).with_name("skips.toml"))))


def pytest_collection_finish() -> None:
    """Spare collections the modules and thousands of tests, which stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _without_traces_of_other_modules() -> Iterator[None]:
    yield
    forget_traces()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
