"""Grafana's dashboard is what its code makes, fits together, and shows every metric."""

import json
import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from tests.support.metrics import CONTRACT, CONTRACT_OF_PREDICTORS, CONTRACT_OF_ROWS

ROOT = Path(__file__).parents[2]
PROVISIONING = ROOT / "docker/grafana/provisioning"
COMMITTED = (PROVISIONING / "dashboards/funnel.json").read_text()
DASHBOARD: dict[str, Any] = json.loads(COMMITTED)
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SOURCES = [*PANELS, *DASHBOARD["templating"]["list"], *DASHBOARD["annotations"]["list"]]


def test_the_committed_dashboard_is_what_its_code_makes() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "docker/grafana/dashboard.py"],
        check=True, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert made.stdout == COMMITTED, "make dashboards"


def test_every_panel_has_a_number_and_a_title_of_its_own() -> None:
    for key in ("id", "title"):
        assert max(Counter(panel[key] for panel in DASHBOARD["panels"]).values()) == 1


def test_panels_lie_side_by_side_within_the_grid() -> None:
    def overlap(a: dict[str, int], b: dict[str, int]) -> bool:
        across = a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
        return across and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]

    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 for p in places)
    assert not any(overlap(a, b) for a, b in combinations(places, 2))
    assert all(a["y"] <= b["y"] for a, b in pairwise(places))


def test_every_panel_says_what_is_good_or_normal() -> None:
    unexplained = [p["title"] for p in PANELS if len(p["description"]) < 40]
    assert unexplained == []
    assert [p["title"] for p in PANELS if p["type"] == "timeseries" and not (
        {"Good", "Bad", "normal"} & set(p["description"].replace(":", "").split())
    )] == []  # fmt: skip


def test_every_query_has_a_letter_and_a_legend() -> None:
    for panel in PANELS:
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert len(set(letters)) == len(letters)
        assert all(target["legendFormat"] for target in panel["targets"])


def test_it_asks_the_data_source_that_is_provisioned() -> None:
    [source] = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    for asks in [*SOURCES, *(target for panel in PANELS for target in panel["targets"])]:
        assert asks["datasource"] == {"type": source["type"], "uid": source["uid"]}


@pytest.mark.parametrize("name", sorted(CONTRACT | CONTRACT_OF_ROWS | CONTRACT_OF_PREDICTORS))
def test_every_metric_is_shown(name: str) -> None:
    assert any(name in target["expr"] for panel in PANELS for target in panel["targets"])


def test_drift_is_marked_in_all_panels() -> None:
    [drift] = DASHBOARD["annotations"]["list"]
    assert "funnel_drift_events_total" in drift["expr"]
    assert "{{detector}}" in drift["textFormat"]
    assert "{{direction}}" in drift["textFormat"]


def test_the_containers_mount_what_grafana_and_prometheus_read() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    def inside(service: str, path: str) -> Path:
        mounts = [v.split(":") for v in services[service]["volumes"] if v.startswith("./")]
        [(here, there, _)] = [m for m in mounts if PurePosixPath(path).is_relative_to(m[1])]
        return ROOT / str(here) / PurePosixPath(path).relative_to(there)

    provider = yaml.safe_load((PROVISIONING / "dashboards/funnel.yml").read_text())
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert inside("grafana", home).read_text() == COMMITTED
    assert str(PurePosixPath(home).parent) == provider["providers"][0]["options"]["path"]
    assert inside("prometheus", "/etc/prometheus/prometheus.yml").is_file()
    assert inside("prometheus", "/etc/prometheus/rules/funnel.yml").is_file()


def test_rates_are_taken_over_the_interval_at_which_prometheus_scrapes() -> None:
    scraped = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    [source] = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
