"""The documents are short where they should be, lead to one another, and agree on figures."""

import re
from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS, FENCE, README, ROOT, name_of, rows, spans

FIGURES = ROOT / "service/docs/figures.md"
TABULAR = ROOT / "funnel/docs/streams.md"
FAMILIES = ROOT / "funnel/docs/families.md"
FAULTS = ROOT / "service/docs/faults.md"
CONTRIBUTING = ROOT / ".github/CONTRIBUTING.md"


@pytest.mark.parametrize(("document", "most"), [(README, 150), (CONTRIBUTING, 60)])
def test_a_document_is_short(document: Path, most: int) -> None:
    assert len(document.read_text().splitlines()) <= most


def links(document: Path) -> list[str]:
    text = FENCE.sub("", document.read_text())
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = document if not path else document.parent / path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(document: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_leads_to_every_document() -> None:
    reached = {(README.parent / link.partition("#")[0]).resolve() for link in links(README)}
    assert [name_of(d) for d in DOCUMENTS if d != README and d not in reached] == []


def test_the_figures_of_the_readme_are_those_of_the_tables() -> None:
    images = {row[0]: row for row in rows(FIGURES) if len(row) == 8}
    tabular = {row[0]: row for row in rows(TABULAR) if len(row) == 11}
    head = next(row for row in tabular.values() if row[0].startswith("accuracy"))
    columns = [head.index("mean"), head.index("agrawal (9)"), head.index("bananas (2)")]
    names = {
        "Funnel, `--model logistic`": "Funnel, the pool",
        "AdaGrad": "AdaGrad",
        "scikit-learn SGDClassifier": "scikit-learn SGDClassifier, log loss",
        "Vowpal Wabbit": "Vowpal Wabbit, its adaptive rule",
        "river ARFClassifier, a forest (one seed)": "river ARFClassifier, seed 0",
    }
    shown = {row[0]: row[1:] for row in rows(README) if len(row) == 5}
    for name, full in names.items():
        on_images = images[full][-1] if full in images else "not run"
        on_tables = [tabular[full][k].partition(" ±")[0] for k in columns]
        assert shown[name] == [on_images, *on_tables]
    families = [row for row in rows(FAMILIES) if row[0] == "all families"]
    on_images = next(row[-1] for row in families if len(row) == 8)
    on_tables = next(row for row in families if len(row) == 11)
    own = [cell.partition(" (")[0] for cell in shown["Funnel"]]
    assert own == [on_images, *(on_tables[k].partition(" ±")[0] for k in columns)]


def test_every_fault_names_a_test_that_exists() -> None:
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = [code for code in spans(FAULTS) if code.startswith("test_")]
    assert len(named) > 15
    for name in named:
        stem = name.removesuffix("…")
        assert name in files or any(test.startswith(stem) for test in tests), name


def test_every_panel_in_the_runbook_is_on_the_dashboard() -> None:
    runbook = (ROOT / "docker/prometheus/runbook.md").read_text()
    dashboard = (ROOT / "docker/grafana/provisioning/dashboards/funnel.json").read_text()
    titles = set(re.findall(r'"title": "([^"]+)"', dashboard))
    named = set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", runbook))
    named -= {"Critical.", "Warning.", "Critical", "warning", "Funnel"}
    assert len(named) > 10
    assert named - titles == set()
