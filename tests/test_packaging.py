"""The wheel holds what the packages need and nothing more; pins and requirements agree."""

import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import requires
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    "onnx", "client", "service", "kafka", "nats", "experiments", "bench", "fuzz", "dev",
}  # fmt: skip
INSTALLED_EXTRAS = sorted(EXTRAS - {"fuzz"})
"""By `make`; atheris has few platforms, and is installed where somebody fuzzes."""
PINS = {
    canonicalize_name(name): version
    for name, _, version in (
        pin.partition("==")
        for pin in (ROOT / "docker/constraints.txt").read_text().splitlines()
        if not pin.startswith("#")
    )
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built with the packages that are installed: without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, "-m", *build, "-w", folder, ROOT], check=True)
    [file] = folder.iterdir()
    assert file.name.startswith("funnel_stream-")
    with zipfile.ZipFile(file) as opened:
        yield opened


@pytest.fixture
def files(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


@pytest.fixture
def metadata(wheel: zipfile.ZipFile) -> Message:
    [name] = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_every_module_and_what_these_read(files: set[str]) -> None:
    kinds = ("*.py", "py.typed", "*.html", "*.js", "*.css", "*.svg", "LICENSE")
    expected = {
        str(path.relative_to(ROOT))
        for package in ("funnel", "service", "streams")
        for kind in kinds
        for path in (ROOT / package).rglob(kind)
    } - {"service/entry/funnel_stream.py"}
    assert {"funnel/py.typed", "service/py.typed", "streams/py.typed"} <= expected
    assert {Path(name).suffix for name in expected} >= {".html", ".js", ".css", ".svg"}
    assert expected | {"funnel_stream.py"} == files


def test_the_wheel_holds_no_pictures_documents_or_tests(files: set[str]) -> None:
    assert not [name for name in files if name.endswith((".png", ".md"))]
    assert not [name for name in files if {"docs", "tests"} & set(Path(name).parts)]


def test_the_optimizer_alone_needs_torch_and_numpy(metadata: Message) -> None:
    assert metadata["Name"] == "funnel-stream"
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    wanted = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert {one.name for one in wanted if one.marker is None} == {"torch", "numpy"}


def test_the_command_starts_where_no_module_of_a_user_is_imported(wheel: zipfile.ZipFile) -> None:
    [name] = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "funnel = funnel_stream:main" in wheel.read(name).decode().splitlines()


def requirements() -> list[Requirement]:
    optional = PROJECT["optional-dependencies"]
    lists = [PROJECT["dependencies"], *(optional[extra] for extra in INSTALLED_EXTRAS)]
    wanted = map(Requirement, chain.from_iterable(lists))
    return [one for one in wanted if one.name != PROJECT["name"]]


def test_pins_are_versions_that_the_project_allows() -> None:
    for wanted in requirements():
        assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)]), wanted


def test_everything_that_make_and_the_image_install_is_pinned() -> None:
    """Where a dependency itself asks for one version (torch does, of CUDA) no pin is needed."""
    for wanted in dependencies(requirements()):
        one_version = any(clause.operator == "==" for clause in wanted.specifier)
        assert canonicalize_name(wanted.name) in PINS or one_version, wanted


def dependencies(
    wanted: Iterable[Requirement], extras: frozenset[str] = frozenset({""})
) -> Iterator[Requirement]:
    """These requirements and all of theirs, as far as they apply here."""
    for one in wanted:
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras):
            yield one
            needed = map(Requirement, requires(one.name) or ())
            yield from dependencies(needed, frozenset({"", *one.extras}))


def test_make_installs_the_pinned_versions_only() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    assert [line for line in lines if "pip install" in line] == [
        "INSTALL := $(BIN)/pip install --quiet --constraint docker/constraints.txt"
    ]


def test_make_demo_passes_options_on() -> None:
    make = ["make", "--dry-run", "demo", "ARGS=orders --rate 5"]
    # The gate runs in a make, whose variables a make inside it would take over.
    of_make = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "VENV")
    own = {name: value for name, value in os.environ.items() if name not in of_make}
    ran = subprocess.run(make, cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == ".venv/bin/funnel demo orders --rate 5"
