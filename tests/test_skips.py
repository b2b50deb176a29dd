"""In CI a test is skipped for a reason that is on the list, or the run fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.skips import Listed, read

ROOT = Path(__file__).parent.parent
CONFTEST = """
from pathlib import Path
from tests.support.skips import Skips, read

def pytest_configure(config):
    config.pluginmanager.register(Skips(read(Path(__file__).with_name("skips.toml"))))
"""
LIST = '[[skip]]\nreason = "needs a GPU"\ntests = ["test_it.py::test_on_gpu[*]"]\n'
GPU = """
import pytest

@pytest.mark.skipif(True, reason="needs a GPU")
@pytest.mark.parametrize("size", [1, 2])
def test_on_gpu(size): ...

def test_anywhere(): ...

@pytest.mark.xfail(strict=True)
def test_that_fails(): assert False
"""
MORE = """
import pytest

def test_more():
    pytest.skip("needs a server")

@pytest.fixture
def server():
    pytest.skip("needs a server")

def test_with_a_fixture(server): ...
"""
MODULE = """
import pytest

pytest.skip("needs a server", allow_module_level=True)
"""


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as a user does, with nothing of this run's settings, and few plugins: fast."""
    inherited = {name: value for name, value in os.environ.items() if name != "CI"}
    chosen = {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        env=inherited | chosen | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "skips.toml").write_text(LIST)
    (tmp_path / "test_it.py").write_text(GPU)
    return tmp_path


WORKERS = pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n", "2")], ids=["one", "two"])


@WORKERS
def test_a_run_whose_skips_are_listed_passes(project: Path, workers: tuple[str, ...]) -> None:
    ran = run(*workers, "-c", project / "pytest.ini", project)
    assert ran.returncode == 0, ran.stdout
    assert "1 passed, 2 skipped, 1 xfailed" in ran.stdout


@WORKERS
def test_skips_that_are_not_listed_fail_the_run_and_are_shown(
    project: Path, workers: tuple[str, ...]
) -> None:
    (project / "test_it.py").write_text(GPU.replace("needs a GPU", "needs a server"))
    (project / "test_more.py").write_text(MORE)
    (project / "test_module.py").write_text(MODULE)
    ran = run(*workers, "-c", project / "pytest.ini", project)
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED, ran.stdout
    shown = {line for line in ran.stdout.splitlines() if line.startswith("test_")}
    assert shown == {
        "test_it.py::test_on_gpu[1]: needs a server",
        "test_it.py::test_on_gpu[2]: needs a server",
        "test_module.py: needs a server",
        "test_more.py::test_more: needs a server",
        "test_more.py::test_with_a_fixture: needs a server",
    }


@pytest.mark.parametrize(("environment", "status"), [({}, 0), ({"CI": "true"}, 1)])
def test_the_list_holds_where_ci_is_set(
    tmp_path: Path, environment: dict[str, str], status: int
) -> None:
    (tmp_path / "test_more.py").write_text(MORE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    ran = run("-p", "tests.conftest", "-c", tmp_path / "pytest.ini", tmp_path, **environment)
    assert ran.returncode == status, ran.stdout


def test_brackets_in_a_pattern_stand_for_themselves() -> None:
    listed = Listed("slow", ["test_it.py::test_on[gpu-*]"])
    assert listed.allows("test_it.py::test_on[gpu-1]", "slow")
    assert not listed.allows("test_it.py::test_ong", "slow")


def test_the_list_names_files_that_exist() -> None:
    patterns = [test for listed in read(ROOT / "tests/skips.toml") for test in listed.tests]
    files = {pattern.partition("::")[0] for pattern in patterns}
    assert files
    assert {file for file in files if not (ROOT / file).is_file()} == set()
