"""`funnel demo`, as a user runs it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import processes_naming

COMMAND = [
    sys.executable,
    "-m",
    "service.cli",
    "demo",
    "abrupt",
    "--source",
    "digits",
    "--port",
    "0",
]


def demo(tmp_path: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_the_demo_learns_marks_shifts_and_draws_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    run = demo(tmp_path, "--examples", "6000", "--rate", "3000", "--plot", str(picture))
    out, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    for angle in ("90°", "0°", "45°"):
        assert f": {angle}" in out
    assert "6,000" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert processes_naming(tmp_path) == set()


@pytest.mark.slow
def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    run = demo(tmp_path, "--examples", "600000", "--rate", "1000")
    assert run.stdout is not None
    for line in run.stdout:
        if "accuracy" in line:
            break
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode in (0, 130)
    assert "Traceback" not in errors
    assert processes_naming(tmp_path) == set()
    assert [p.name for p in tmp_path.iterdir() if "funnel" in p.name] == []
