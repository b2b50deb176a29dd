"""The command starts whatever else has the names of Funnel's packages, and says what it lacks."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import numpy as np
import pytest
from funnel_stream import hidden, ordered

from service.http.codecs.json import MAX_IN_PROCESS
from tests.support.harness import free_port, wait_for

ROOT = Path(__file__).parent.parent
ENTRY = ROOT / "service/entry"
FUNNEL = Path(sysconfig.get_path("scripts")) / "funnel"
MODULE = (sys.executable, "-m", "funnel_stream")
COMPARE = ("compare", "segments", "--examples", "100", "--peers", "")
"""It imports all packages."""
THEIRS = {
    "packages": ("funnel/__init__.py", "service/__init__.py", "streams/__init__.py"),
    "modules": ("funnel.py", "service.py", "streams.py"),
}


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command outside of the repository."""
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(params=THEIRS)
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of a user with modules of the names of Funnel's packages."""
    for name in THEIRS[request.param]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('a module of the user was imported')\n")
    return tmp_path


@pytest.mark.parametrize("command", [(FUNNEL,), MODULE], ids=["funnel", "python -m funnel_stream"])
def test_modules_of_a_user_in_the_working_directory_do_not_break_the_command(
    theirs: Path, command: tuple[str | Path, ...]
) -> None:
    ran = run(*command, *COMPARE, cwd=theirs, PYTHONPATH=str(ROOT))
    assert ran.returncode == 0, ran.stderr
    assert "Funnel" in ran.stdout


def test_modules_of_a_user_on_pythonpath_do_not_break_the_command(
    theirs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    ran = run(FUNNEL, *COMPARE, cwd=elsewhere, PYTHONPATH=f"{theirs}{os.pathsep}{ROOT}")
    assert ran.returncode == 0, ran.stderr
    assert "Funnel" in ran.stdout


def test_a_service_reads_large_bodies_whatever_is_on_the_path(theirs: Path) -> None:
    """They are read by a process of its own, which must find Funnel's packages as well."""
    port = free_port()
    options = {"port": port, "features": 784, "classes": 2, "data-dir": theirs / "data"}
    serve = [FUNNEL, "serve", *(f"--{name}={value}" for name, value in options.items())]
    environment = os.environ | {"PYTHONPATH": f"{theirs}{os.pathsep}{ROOT}"}
    with subprocess.Popen(serve, cwd=theirs, env=environment) as service:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                wait_for(lambda: _is_ready(client), 60)
                body = {"features": np.full((100, 784), 0.5).tolist(), "labels": [0, 1] * 50}
                answer = client.post("/learn?wait=applied", json=body)
                assert len(answer.request.content) > MAX_IN_PROCESS
                assert answer.status_code == 200, answer.text
        finally:
            service.terminate()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_a_model_in_a_module_that_is_hidden_is_named(theirs: Path) -> None:
    serve = ("serve", "--model", "service:network", "--features", "3", "--classes", "2")
    ran = run(FUNNEL, *serve, cwd=theirs, PYTHONPATH=str(ROOT))
    assert ran.returncode == 1
    for path in hidden([str(theirs)]):
        assert f"funnel: {path} is hidden by Funnel's package of that name; rename" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_command_without_what_it_needs_says_what_to_install(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare/bin/python"
    ran = run(bare, "-m", "funnel_stream", "serve", cwd=tmp_path, PYTHONPATH=f"{ROOT}:{ENTRY}")
    assert ran.returncode == 1
    [line] = ran.stderr.splitlines()
    assert line.startswith("funnel: the command needs ")
    assert line.endswith("which is not installed: pip install 'funnel-stream[service]'")


def test_packages_of_another_place_are_named(tmp_path: Path) -> None:
    """As where another distribution has removed ours."""
    shutil.copy(ENTRY / "funnel_stream.py", tmp_path)
    (tmp_path / "funnel").symlink_to(ROOT / "funnel")
    ran = run(sys.executable, "-m", "funnel_stream", "--version", cwd=tmp_path)
    assert ran.returncode == 1
    [line] = ran.stderr.splitlines()
    assert line.startswith("funnel: Python imports funnel from ")
    assert line.endswith("install Funnel into a virtual environment of its own")


def test_only_folders_that_hide_a_package_are_put_last(theirs: Path) -> None:
    (theirs / "plain/service").mkdir(parents=True)  # without a module it hides nothing
    plain, ours = str(theirs / "plain"), str(ROOT)
    assert ordered([plain, str(theirs), ours, ""]) == [plain, ours, "", str(theirs)]
    assert hidden([plain, ours]) == []
    assert len(hidden([str(theirs)])) == 3
