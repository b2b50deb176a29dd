"""The table of accuracies can be computed in parts."""

import json
import re
from pathlib import Path

import pytest

from streams.peers.peers import PEERS
from tests.benchmarks import quality
from tests.benchmarks.accuracy.quality_runs import BEHIND, load
from tests.benchmarks.accuracy.quality_tables import is_at_edge

PART = ["--streams", "phishing", "--learners", "funnel", "sgd", "--seeds", "0", "1"]


def run(results: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    arguments = ["quality", "--results", str(results), *PART, *options]
    monkeypatch.setattr("sys.argv", arguments)
    assert quality.main() == 0


def test_what_has_been_run_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "quality.jsonl"
    settings = len(PEERS["sgd"].settings)
    run(results, monkeypatch, "--seconds", "0")
    assert f"{2 * (1 + settings)} runs left" in capsys.readouterr().out
    run(results, monkeypatch)
    whole = results.read_text()
    table = capsys.readouterr().out
    assert "| **Funnel, one** | " in table
    assert "±" in table
    assert re.search(r"^\| log loss / ECE \| phishing \|$", table, re.M)
    assert re.search(r"^\| SGD \| (\*\*)?0\.\d{3}(\*\*)? / (\*\*)?0\.\d{3}", table, re.M)
    lines = whole.splitlines(keepends=True)
    results.write_text("".join(lines[:3]))
    run(results, monkeypatch)
    again = [json.loads(line) for line in results.read_text().splitlines()]
    for old, new in zip(map(json.loads, lines), again, strict=True):
        assert old | {"seconds": 0} == new | {"seconds": 0}
    assert capsys.readouterr().out == table


def test_settings_far_behind_on_the_first_seed_are_not_run_on_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "quality.jsonl"
    run(results, monkeypatch)
    found = load(results)
    first = {k.setting: r.accuracy for k, r in found.items() if (k.learner, k.seed) == ("sgd", 0)}
    second = {k.setting for k in found if (k.learner, k.seed) == ("sgd", 1)}
    assert second == {s for s, a in first.items() if a >= max(first.values()) - BEHIND}


def test_a_best_setting_at_the_edge_of_its_grid_is_noticed() -> None:
    grid = ["lr 0.1, momentum 0.9", "lr 1, momentum 0.9", "lr 10, momentum 0.9"]
    assert [is_at_edge(setting, grid) for setting in grid] == [True, False, True]
    assert not is_at_edge("default", ["default"])
