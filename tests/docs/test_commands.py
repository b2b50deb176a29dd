"""The commands in the documents parse, and those that can run do."""

import contextlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli import make_parser
from tests.docs.documents import DOCUMENTS, README, ROOT, blocks, commands, name_of, spans
from tests.support.harness import ServiceProcess, serving

USE = ROOT / "service/docs/use.md"
FAMILIES = ROOT / "funnel/docs/families.md"
ADDRESS = "http://127.0.0.1:8000"
OF_ROWS = "http://127.0.0.1:8010"
SOCKET = "funnel-data/log/valkey.sock"
SERVE = "funnel serve --features 3 --classes 2 --batch-size 2"
SERVE_ROWS = "funnel serve --data-dir shop --port 8010"
OF_NUMBERS = "http://127.0.0.1:8011"
SERVE_NUMBERS = (
    "funnel serve --task regression --features 3 --batch-size 2 --data-dir prices --port 8011"
)
WITH_OPTIONS = re.compile(r"(?:[A-Z_]+=\S+ )*funnel [a-z]+ .*--")


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    assert SERVE in commands(README, "funnel")
    assert SERVE in spans(USE)
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,  # short enough for a socket
        serving(Path(directory), model=None, features=3, classes=2, batch_size=2) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def of_rows() -> Iterator[ServiceProcess]:
    assert SERVE_ROWS in spans(USE)
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,
        serving(Path(directory), model=None) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def of_numbers() -> Iterator[ServiceProcess]:
    assert SERVE_NUMBERS in spans(USE)
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,
        serving(
            Path(directory), model=None, task="regression", features=3, batch_size=2
        ) as running,
    ):
        yield running


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_funnel_command_parses(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inline = [code for code in spans(document) if WITH_OPTIONS.match(code) and "…" not in code]
    for command in commands(document, "funnel") + inline:
        words = shlex.split(command, comments=True)
        words = words[words.index("funnel") + 1 :]
        try:
            make_parser(words[0]).parse_args(words)
        except SystemExit as end:
            pytest.fail(f"{command}: exit {end.code}, {capsys.readouterr().err}")


def test_the_readme_shows_every_way_in() -> None:
    verbs = {command.split()[1] for command in commands(README, "funnel")}
    assert {"serve", "compare"} <= verbs


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_module_that_is_run_exists(document: Path) -> None:
    text = " ".join(document.read_text().split())
    for module in re.findall(r"python -m ([\w.]+\w)", text):
        if module.partition(".")[0] in ("funnel", "service", "streams", "tests"):
            assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_make_target_exists(document: Path) -> None:
    targets = re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    in_blocks = [command.split()[1] for command in commands(document, "make")]
    in_text = [word for code in spans(document) for word in re.findall(r"^make ([a-z0-9]+)$", code)]
    assert set(in_blocks + in_text) <= set(targets)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_block_of_python_runs(
    document: Path, service: ServiceProcess, of_rows: ServiceProcess
) -> None:
    socket = str(service.directory / "data/log/valkey.sock")
    for block in blocks(document, "python"):
        names: dict[str, object] = {}
        addressed = block.replace(ADDRESS, service.url).replace(OF_ROWS, of_rows.url)
        exec(addressed.replace(SOCKET, socket), names)
        if isinstance(client := names.get("service"), httpx.Client):
            client.close()


@pytest.mark.parametrize("document", [README, USE], ids=name_of)
def test_every_block_with_curl_runs(
    document: Path, service: ServiceProcess, of_rows: ServiceProcess, of_numbers: ServiceProcess
) -> None:
    found = [block for block in blocks(document, "sh") if "curl" in block]
    assert found
    addresses = {ADDRESS: service.url, OF_ROWS: of_rows.url, OF_NUMBERS: of_numbers.url}
    for block in found:
        addressed = block
        for there, here in addresses.items():
            addressed = addressed.replace(there, here)
        ran = subprocess.run(["bash", "-ec", addressed], capture_output=True, check=True, text=True)
        assert ran.stdout.startswith("{")
        assert '"error"' not in ran.stdout


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="needs redis-cli")
def test_the_redis_cli_of_the_documents_runs(service: ServiceProcess) -> None:
    flush = {"features": [[0, 0, 0], [0, 0, 1]], "labels": [0, 1]}
    [command] = commands(USE, "redis-cli")
    assert SOCKET in command
    with service.client() as client:
        client.post("/learn?wait=applied", json=flush)  # and what came before
        before = client.get("/model").json()["examples_learned"]
        socket = str(service.directory / "data/log/valkey.sock")
        subprocess.run(["bash", "-ec", command.replace(SOCKET, socket)], check=True)
        client.post("/learn?wait=applied", json=flush)
        assert client.get("/model").json()["examples_learned"] == before + 4


@pytest.mark.parametrize(
    ("options", "settings", "answered"),
    [
        ("--classes 3", {"classes": 3}, lambda answer: answer["probabilities"][0]),
        (
            "--task quantile:0.1,0.5,0.9",
            {"task": "quantile:0.1,0.5,0.9"},
            lambda answer: answer["quantiles"],
        ),
    ],
)
def test_the_model_of_the_documents_can_be_served(
    options: str,
    settings: dict[str, object],
    answered: Callable[[dict[str, Any]], Sized],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [block] = [block for block in blocks(USE, "python") if block.startswith("# shop.py")]
    (tmp_path / "shop.py").write_text(block)
    command = f"funnel serve --model shop:network --features 12 {options}"
    assert command in commands(USE, "funnel")
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        running = ServiceProcess(
            Path(directory), {"model": "shop:network", "features": 12} | settings
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        running.start()
        with contextlib.closing(running.client()) as client:
            answer = client.post("/predict", json={"features": [[0.0] * 12]}).raise_for_status()
        running.kill()
        assert len(answered(answer.json())) == 3


def test_the_family_of_the_documents_can_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = blocks(FAMILIES, "python")
    assert len(block.splitlines()) <= 30
    (tmp_path / "shop.py").write_text(block)
    chosen = "linear,trees,shop:Centres"
    command = f"funnel serve --families {chosen} --features 12 --classes 3"
    assert command in commands(FAMILIES, "funnel")
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"model": None, "families": chosen, "features": 12, "classes": 3, "batch_size": 3}
    examples = {"features": [[float(k)] * 12 for k in range(3)], "labels": [0, 1, 2]}
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,
        serving(Path(directory), **options) as running,
        running.client() as client,
    ):
        client.post("/learn?wait=applied", json=examples).raise_for_status()
        weights = client.get("/optimizer").raise_for_status().json()["family_weights"]
    assert weights.keys() == {"linear", "trees", "Centres"}
