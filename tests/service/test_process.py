"""The memory that the process gets from its system."""

import os
from pathlib import Path

import pytest

from service import process
from service.process import memory_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
GROUP = "system.slice/funnel.service"


@pytest.fixture(autouse=True)
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups of which none has a limit."""
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    (groups / GROUP).mkdir(parents=True)
    (groups / "memory").mkdir()
    own.write_text(f"0::/{GROUP}\n")
    monkeypatch.setattr(process, "CGROUPS", groups)
    monkeypatch.setattr(process, "OWN_CGROUP", own)
    return groups


@pytest.mark.parametrize(
    "file",
    [
        "memory.max",
        "memory/memory.limit_in_bytes",
        f"{GROUP}/memory.max",
        "system.slice/memory.max",
    ],
)
def test_the_memory_is_that_of_the_smallest_group_around_the_process(
    groups: Path, file: str
) -> None:
    (groups / GROUP / "memory.max").write_text("max\n")
    (groups / file).write_text("1048576\n")
    assert memory_bytes() == 1 << 20


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n", ""])
def test_without_a_limit_the_memory_is_that_of_the_machine(groups: Path, limit: str) -> None:
    (groups / "memory.max").write_text(limit)
    assert memory_bytes() == MACHINE


def test_on_a_system_without_control_groups_the_memory_is_that_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process, "OWN_CGROUP", tmp_path / "nothing")
    monkeypatch.setattr(process, "CGROUPS", tmp_path / "nowhere")
    assert memory_bytes() == MACHINE
