"""What README shows runs, and what it says is so."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.commands.options import _shown
from service.fold import networks as models
from service.settings import Settings
from tests.support.harness import ServiceProcess, serving
from tests.support.metrics import CONTRACT

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    assert "funnel serve --features 3 --classes 2 --batch-size 2\n" in README
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,  # short enough for a socket
        serving(Path(directory), features=3, classes=2, batch_size=2) as running,
    ):
        yield running


def test_the_python_of_the_readme_runs(service: ServiceProcess) -> None:
    found = blocks("python")
    assert any(ADDRESS in block for block in found)
    for block in found:
        names: dict[str, object] = {}
        exec(block.replace(ADDRESS, service.url), names)
        if isinstance(client := names.get("service"), httpx.Client):
            client.close()


def commands(program: str) -> list[str]:
    joined = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.startswith(program)]


def test_the_curl_of_the_readme_runs(service: ServiceProcess) -> None:
    found = commands("curl")
    assert len(found) == 2
    for command in found:
        ran = subprocess.run(
            ["bash", "-c", command.replace(ADDRESS, service.url)], capture_output=True, check=True
        )
        assert "error" not in json.loads(ran.stdout)


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="needs redis-cli")
def test_the_redis_cli_of_the_readme_runs(service: ServiceProcess) -> None:
    behind = {"features": [[0, 0, 0], [0, 0, 1]], "labels": [0, 1]}
    with service.client() as client:
        client.post("/learn?wait=applied", json=behind)  # and what came before
        before = client.get("/model").json()["examples_learned"]
        [command] = commands("redis-cli")
        socket = service.directory / "data/log/valkey.sock"
        subprocess.run(
            ["bash", "-c", command.replace("funnel-data/log/valkey.sock", str(socket))], check=True
        )
        client.post("/learn?wait=applied", json=behind)
        assert client.get("/model").json()["examples_learned"] == before + 4


def test_the_model_of_the_readme_can_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = [b for b in blocks("python") if b.startswith("# shop.py")]
    (tmp_path / "shop.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "--model shop:network --features 12 --classes 3" in README
    models.build("shop:network", 12, 3, (), 0)


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    for name, field in Settings.model_fields.items():
        shown = _shown(field.get_default())
        default = f"`{shown}`" if shown else ""
        assert f"| `FUNNEL_{name.upper()}` | {default} | {field.description} |" in README


def test_every_metric_is_in_the_readme() -> None:
    named = {name.removesuffix("_bucket") for name in CONTRACT}
    assert {name for name in named if f"`{name}" not in README} == set()


def test_the_files_the_readme_links_to_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"\bmake ([a-z0-9]+)\b(?=[`\n])", README))
    assert {"test", "demo", "bench"} <= named <= set(targets)
