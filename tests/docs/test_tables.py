"""The tables of settings and metrics are those of the code; `make docs` writes them."""

import re
from pathlib import Path

import pytest

from service.settings import Settings
from tests.docs import tables
from tests.docs.documents import DOCUMENTS, ROOT, name_of

WRITE = "run `make docs`"


def test_the_table_of_settings_is_up_to_date() -> None:
    assert tables.table_in(tables.SETTINGS) == tables.settings_table(), WRITE


def test_the_table_of_metrics_is_up_to_date() -> None:
    assert tables.table_in(tables.METRICS) == tables.metrics_table(tables.scrape_all()), WRITE


def test_every_setting_has_its_default_in_the_table() -> None:
    shown = {
        "redis_url": "", "data_dir": "`funnel-data`", "batch_size": "`100`", "hidden": "`128`",
        "optimizer": "`pool`", "standardize": "`true`", "loss_guard": "`0.0`", "api_key": "",
    }  # fmt: skip
    table = tables.table_in(tables.SETTINGS)
    for name, default in shown.items():
        assert f"| `FUNNEL_{name.upper()}` | {default} |" in table
    assert table.count("\n| `FUNNEL_") == len(Settings.model_fields)


def test_every_metric_of_dashboards_and_alerts_is_in_the_table() -> None:
    used = set()
    for path in ("prometheus/rules/funnel.yml", "grafana/provisioning/dashboards/funnel.json"):
        used |= set(re.findall(r"\bfunnel_[a-z_]+", (ROOT / "docker" / path).read_text()))
    table = tables.table_in(tables.METRICS)
    named = {re.sub("_(bucket|count|sum|gcount|gsum)$", "", name) for name in used}
    assert len(named) > 20
    assert {name for name in named if f"| `{name}` |" not in table} == set()


def test_a_table_is_replaced_and_the_text_around_it_kept(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text("before\n\n<!-- x: from the code -->\n| old |\n<!-- end -->\n\nafter\n")
    for table in ("| new |\n|---|", "| newer |"):
        tables.write(document, table)
        assert tables.table_in(document) == table
    text = document.read_text()
    assert text.startswith("before\n\n<!-- x: from the code -->\n")
    assert text.endswith("<!-- end -->\n\nafter\n")
    document.write_text("no table")
    with pytest.raises(ValueError, match="has no '<!-- name"):
        tables.write(document, "| new |")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_variable_in_a_document_is_a_setting(document: Path) -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    known = {f"FUNNEL_{name.upper()}" for name in Settings.model_fields}
    known |= set(re.findall(r"\$\{(FUNNEL_\w+)", compose))
    assert set(re.findall(r"FUNNEL_[A-Z_]+[A-Z]", document.read_text())) <= known
