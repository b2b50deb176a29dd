"""The live page of a model of rows, in a real headless Chromium."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.browser import PROGRAM, Page, browsing
from tests.support.harness import ServiceProcess, serving, wait_for
from tests.support.named import records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs chromium"),
]

OPTIONS = {"schema": "auto", "table_bits": 12, "batch_size": 100, "max_wait_ms": 50}
FEATURES = "[...document.querySelectorAll('#features tbody tr')].map(r => r.innerText)"
COLUMNS = "[...document.querySelectorAll('#columns tbody tr')].map(r => r.innerText)"
BARS = "[...document.querySelectorAll('#features .bar')].map(b => b.getBoundingClientRect().width)"
LINES_OF_NAMES = """[...document.querySelectorAll('#learners tbody th')].map(name => {
  const range = document.createRange();
  range.selectNodeContents(name);
  return range.getClientRects().length;
})"""
SLY = "<img src=x>"


def learn(client: httpx.Client, seed: int) -> None:
    rows, labels = records(seed, 100)
    for row in rows:
        row[SLY] = "a"
    client.post("/learn?wait=applied", json={"rows": rows, "labels": labels}).raise_for_status()


@dataclass
class Shown:
    service: ServiceProcess
    page: Page


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A service that has learned rows, and its page."""
    with (
        serving(tmp_path_factory.mktemp("rows"), **OPTIONS) as service,
        service.client() as client,
        browsing(tmp_path_factory.mktemp("profile")) as page,
    ):
        for k in range(20):
            learn(client, k)
        page.resize(1280, 900)
        page.open(service.url)
        page.wait_for(f"{FEATURES}.length === 15")
        yield Shown(service, page)


def test_the_features_that_matter_have_bars_gains_and_counts(shown: Shown) -> None:
    rows = shown.page.evaluate(FEATURES)
    vip = next(row for row in rows if row.startswith("plan=vip"))
    assert re.fullmatch(r"plan=vip\s+\+\d+\.\d\d stay\s+[\d.]+\s+\d+", vip)
    bars = shown.page.evaluate(BARS)
    assert bars == sorted(bars, reverse=True)
    assert bars[0] > 2 * bars[-1] > 0


def test_columns_show_what_is_missing_and_how_means_moved(shown: Shown) -> None:
    with shown.service.client() as client:
        for k in range(20, 23):
            learn(client, k)
    shown.page.wait_for(f"{COLUMNS}.some(r => /^age\\s+[\\d.]+ %.*σ$/.test(r))")
    assert len(shown.page.evaluate(COLUMNS)) == 5
    words = shown.page.evaluate("document.getElementById('columns-summary').textContent")
    assert words == "No column drifts: recent rows are like those before."


def test_a_column_that_drifts_is_named_first(shown: Shown) -> None:
    """Here the answer is made up; tests/service/monitoring/test_columns.py has real drift."""
    made = """import('/page/rows.js').then(({ showColumns }) => {
      const calm = { kind: 'number', missing: 0.1, missing_before: 0.1, new_keys: null,
        new_keys_before: null, shift: 0.05, is_drifting: false };
      const columns = [...Array(30).keys()].map((k) => ({ ...calm, name: `calm ${k}` }));
      showColumns([...columns, { ...calm, name: 'mute', missing: 1, is_drifting: true }]);
    })"""
    shown.page.evaluate(made)
    rows = shown.page.evaluate(COLUMNS)
    assert re.match(r"mute drifts\s+10\.0 % → 100\.0 %\s+–\s+\+0\.05 σ", rows[0])
    assert len(rows) == 15
    words = shown.page.evaluate("document.getElementById('columns-summary').textContent")
    assert words == "mute: recent rows differ from those before. 16 more do not drift."


def test_names_of_columns_are_text_and_nothing_goes_wrong(shown: Shown) -> None:
    shown.page.wait_for(f"{COLUMNS}.some(r => r.startsWith('{SLY}'))")
    assert shown.page.evaluate("document.querySelectorAll('img').length") == 0
    assert shown.page.problems == []


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(shown: Shown, width: int, scheme: str) -> None:
    shown.page.resize(width, 800, scheme)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    overflow = "[...document.querySelectorAll('.panel')].filter(p => p.scrollWidth > p.clientWidth)"
    assert shown.page.evaluate(f"{overflow}.length") == 0
    lines = shown.page.evaluate(LINES_OF_NAMES)
    assert len(lines) >= 3
    assert set(lines) == {1}


def test_every_table_has_a_name_and_headings(shown: Shown) -> None:
    nodes = shown.page.command("Accessibility.getFullAXTree")["nodes"]
    tables = [
        node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "table"
    ]
    assert tables == [
        "Features that matter most now",
        "Columns, recently",
        "Learners and floors",
        "Classes, the lowest recall first",
        "Labels, and what was predicted",
    ]


def choose(page: Page, path: Path) -> None:
    """Choose a file, as a user does, and send it."""
    root = page.command("DOM.getDocument")["root"]["nodeId"]
    found = page.command("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.command("DOM.setFileInputFiles", files=[str(path)], nodeId=found)
    page.evaluate("document.querySelector('#file-form button').click()")


def test_an_empty_service_learns_a_csv_file_that_is_chosen(shown: Shown, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("plan,age,outcome\n" + "basic,30,stay\nvip,,churn\n" * 50)
    with serving(tmp_path / "empty", **OPTIONS) as service, service.client() as client:
        page = shown.page
        page.resize(390, 800)
        page.open(service.url)
        page.wait_for("!document.getElementById('file-form').hidden")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        choose(page, file)
        page.wait_for("/outcome/.test(document.getElementById('file-answer').textContent)")
        assert client.get("/model").json()["examples_learned"] == 0
        page.evaluate("document.getElementById('file-label').value = 'outcome'")
        choose(page, file)
        page.wait_for("document.getElementById('start').hidden")
        assert client.get("/model").json()["examples_learned"] == 100
        assert client.get("/schema").json()["labels"] == ["stay", "churn"]
        wait_for(lambda: page.evaluate("true") and page.problems)  # of the refusal
        assert page.problems.pop().startswith("Failed to load resource")
        assert page.problems == []


def test_a_model_of_dense_features_has_no_such_section(
    shown: Shown, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serving(tmp_path_factory.mktemp("dense"), features=2, classes=2) as service:
        shown.page.open(service.url)
        shown.page.wait_for("document.getElementById('model').textContent.startsWith('logistic')")
        assert shown.page.evaluate("document.getElementById('rows').hidden")
        shown.page.wait_for("document.getElementById('curl').textContent")
        assert shown.page.evaluate("document.getElementById('file-form').hidden")
        assert not any("/features" in r for r in shown.page.requests if r.startswith(service.url))
