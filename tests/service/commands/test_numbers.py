"""``funnel compare`` where labels are numbers, and the service agrees with it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.cli import main
from service.commands.comparisons import quantile_comparison
from service.commands.comparisons.labels import task_of
from service.commands.comparisons.number_comparison import LATE, Run, Scores, table, warning
from service.commands.comparisons.quantile_comparison import best
from streams.peers.number_learners import (
    LastNumber,
    Mean,
    NumberLearner,
    RiverLinear,
    ScikitNumbers,
    VowpalWabbitNumbers,
)
from streams.peers.number_peers import NUMBER_PEERS
from streams.peers.quantile_peers import QUANTILE_PEERS
from streams.peers.row_learners import RowBatch, ScikitRows
from streams.peers.row_peers import ROW_PEERS
from streams.rows.rows import Rows
from tests.support.harness import serving, wait_for
from tests.support.metrics import sample, scrape


def write(path: Path, n: int, words: bool = True) -> Path:
    """Write rows whose label follows from the others, except for noise of 0.2."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write(f"{'plan,' * words}area,age,rent\n")
        for _ in range(n):
            plan, area, age = rng.integers(3), rng.normal(60, 20), rng.integers(50)
            rent = 300 + 8 * area - 2 * age + 100 * plan * words + rng.normal(0, 0.2)
            name = f"{('old', 'new', 'top')[plan]}," * words
            file.write(f"{name}{area:.2f},{'' if rng.random() < 0.05 else age},{rent:.3f}\n")
    return path


def maes(text: str) -> dict[str, float]:
    """Return the MAE of each learner in a table."""
    found = re.findall(r"^(\S.*?)  +\S.*?  +([\d.]+)  +[\d.]+  +-?[\d.]+", text, re.MULTILINE)
    return {learner: float(mae) for learner, mae in found}


def test_compare_shows_errors_of_funnel_peers_and_floors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rents.csv", 1_500)
    peers = "mean,no-change,scikit-learn,vw,river-linear,river-tree,majority"
    options = ["--task", "regression", "--peers", peers, "--batch-size", "20"]
    assert main(["compare", str(path), *options]) == 0
    out, err = capsys.readouterr()
    assert "majority is skipped: it does not predict numbers" in err
    found = maes(out)
    assert len(found) == 7
    assert list(found.values()) == sorted(found.values())
    assert found["Funnel (auto)"] < 0.3 * found["the mean of the numbers so far"]
    assert "worse than a floor" not in out


def test_floors_are_shown_with_every_choice_of_peers_and_scores_of_classes_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rents.csv", 300, words=False)
    options = ["compare", str(path), "--model", "logistic"]
    assert main([*options, "--peers", "sgd"]) == 0
    assert {"the mean of the numbers so far", "the last known number"} < maes(
        capsys.readouterr().out
    ).keys()
    assert main([*options, "--by", "auc"]) == 2
    error = capsys.readouterr().err
    assert (
        "--by is for classes; tables of numbers are ordered by their mean absolute error" in error
    )


@pytest.mark.parametrize("words", [False, True])
def test_a_file_whose_labels_are_numbers_is_regression_by_itself(
    words: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rents.csv", 400, words)
    assert main(["compare", str(path), "--peers", "mean"]) == 0
    out, err = capsys.readouterr()
    assert "MAE" in out
    assert "task regression, because the labels are" in err
    assert "--task multiclass learns classes" in err
    assert main(["compare", str(path), "--peers", "majority", "--task", "multiclass"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_quantiles_are_shown_with_their_coverage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rents.csv", 2_000)
    options = ["--task", "quantile:0.1,0.5,0.9", "--batch-size", "20", "--peers", ""]
    assert main(["compare", str(path), *options]) == 0
    shown = quantile_lines(capsys.readouterr().out)
    assert len(shown) == 9, "three learners, of which two are floors, for each quantile"
    found = [line for line in shown if line[1].startswith("Funnel")]
    assert [level for level, _, _, _ in found] == ["0.1", "0.5", "0.9"]
    coverages = [float(coverage) for _, _, _, coverage in found]
    assert coverages == sorted(coverages)
    assert coverages[0] < 0.3 < coverages[1] < 0.7 < coverages[2]


def quantile_lines(text: str) -> list[tuple[str, str, str, str]]:
    """Return quantile, learner, pinball loss and coverage of each line of the table of these."""
    return re.findall(
        r"^(0\.\d+)  +(\S.*?)  +\S.*?  +([\d.]+)  +([\d.]+)  +[\d.–]+$", text, re.MULTILINE
    )


def test_quantiles_have_peers_with_a_learner_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rents.csv", 1_500)
    options = ["--task", "quantile:0.1,0.9", "--batch-size", "20"]
    peers = "mean,no-change,vw,river-linear,scikit-learn"
    assert main(["compare", str(path), *options, "--peers", peers]) == 0
    out, err = capsys.readouterr()
    assert "scikit-learn is skipped: it does not learn quantiles batch by batch" in err
    found = quantile_lines(out)
    assert [level for level, *_ in found] == ["0.1"] * 5 + ["0.9"] * 5
    for own in (found[:5], found[5:]):
        losses = [float(loss) for _, _, loss, _ in own]
        assert losses == sorted(losses)
        assert len({learner for _, learner, _, _ in own}) == 5
        *_, first, second = (learner for _, learner, _, _ in own)
        assert {first, second} == {
            "the quantiles of the numbers so far",
            "the last known number and the quantiles of the changes so far",
        }
    [crossed] = re.findall(r"^Funnel \(auto\).* ([\d.]+)$", out, re.MULTILINE)
    assert crossed == "0.0000"
    assert "worse than a floor" not in out


@pytest.mark.parametrize("name", QUANTILE_PEERS)
def test_a_peer_of_quantiles_covers_its_share(name: str) -> None:
    peer = QUANTILE_PEERS[name]
    if peer.missing:
        pytest.skip(peer.missing)
    rng = np.random.default_rng(0)
    inputs, numbers = rng.normal(size=(100, 50, 2)), rng.normal(size=(100, 50))
    if name in ("vw", "river-linear"):
        numbers += inputs @ np.array([3.0, -2.0])
    batches = [batch(x, y) for x, y in zip(inputs, numbers, strict=True)]
    middle = dict(list(peer.settings.items())[2:6] or peer.settings)
    for quantile in (0.1, 0.9):
        _, found = best(middle, quantile, batches, 50, numbers[1:].ravel(), lambda n: None)
        covered = (numbers[1:].ravel() <= found)[-2_500:].mean()
        assert covered == pytest.approx(quantile, abs=0.05)


def test_what_a_quantile_loses_and_where_quantiles_cross() -> None:
    numbers, quantiles = np.array([0.0, 2.0, 4.0]), np.array([0.1, 0.9])
    own = quantile_comparison.Run("Funnel", ("", ""), 0, np.array([[0, 4], [3, 2], [3, 5]], float))
    assert own.losses(numbers, quantiles) == pytest.approx([(0.9 + 0.1) / 3, (0.4 + 0.1) / 3])
    assert own.crossed == pytest.approx(1 / 3)
    floor = quantile_comparison.Run("a rule", ("", ""), 1, np.stack([numbers, numbers], axis=1))
    assert quantile_comparison.warning(own, [floor], numbers, quantiles) == (
        "Funnel is worse than a floor: its pinball loss is 0.2500; a rule (0.0000)\n\n"
    )
    assert quantile_comparison.warning(floor, [own], numbers, quantiles) == ""


def test_a_named_set_of_numbers_is_learned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "chick_weights", "--peers", "mean", "--batch-size", "50"]) == 0
    assert "chick_weights: 578 rows" in capsys.readouterr().out


WRONG = {
    "words": ("plan,label\na,x\nb,y\n", [], "is no finite number"),
    "a stream of classes": (None, ["--examples", "200"], "labels of sea are classes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_labels_that_are_no_numbers_are_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, options, message = WRONG[case]
    path = tmp_path / "wrong.csv"
    path.write_text(text or "")
    name = str(path) if text else "sea"
    assert main(["compare", name, "--task", "regression", *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [False, True])
def test_the_mae_is_that_of_the_service(
    words: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rents.csv", 1_000, words)
    assert main(["compare", str(path), "--task", "regression", "--peers", "mean"]) == 0
    offline = maes(capsys.readouterr().out)["Funnel (auto)"]
    options = {"schema": "auto", "task": "regression", "batch_size": 100, "max_wait_ms": 600_000}
    with (
        serving(tmp_path, model=None, effort="full", **options) as service,
        service.client() as client,
    ):
        assert main(["stream", str(path), "--to", service.url]) == 0
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 1_000)
        wait_for(lambda: sample(scrape(client), "funnel_model_version") == 10)
        found = scrape(client)
    shown = sample(found, "funnel_loss", learner="served", window="total")
    assert shown == pytest.approx(offline, rel=5e-5, abs=5e-5)
    score = sample(found, "funnel_score", learner="served", metric="mae", window="total")
    assert score == pytest.approx(shown, rel=1e-6)
    assert not any(name.startswith("funnel_class_") for name, _ in found)


TEXTS = {
    "numbers with fractions": ([f"{k / 4}" for k in range(40)], "regression"),
    "grades in halves": (["0.5", "1", "1.5", "2", "2.5"], "multiclass"),
    "many whole numbers with gaps": ([str(3 * k - 20) for k in range(60)], "regression"),
    "classes numbered from 0": ([str(k) for k in range(200)], "multiclass"),
    "classes numbered from 1": ([str(k) for k in range(1, 200)], "multiclass"),
    "few whole numbers": ([str(7 * k) for k in range(20)], "multiclass"),
    "a word among numbers": (["x", *(f"{k}.5" for k in range(99))], "multiclass"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_labels_decide_the_task(case: str) -> None:
    texts, expected = TEXTS[case]
    assert str(task_of(texts)[0]) == expected


@pytest.mark.parametrize("wild", ["inf", "1e300", "n.a."])
def test_a_label_that_keeps_others_from_being_numbers_is_named(wild: str) -> None:
    task, why = task_of([*(f"{k}.5" for k in range(99)), wild])
    assert str(task) == "multiclass"
    assert why == (
        f"1 of its 100 different labels are no finite fp32 numbers, the first of them {wild!r}"
    )
    assert task_of(["stay", "churn"])[1] == "", "words surprise nobody"


def test_scores_are_those_of_their_definitions() -> None:
    numbers = np.arange(2_000.0) % 7
    predicted = numbers + np.where(np.arange(2_000) < LATE, 2.0, -1.0)
    found = Scores.of(predicted, numbers, first=500)
    assert found.mae == pytest.approx((500 * 2 + 1_000) / 1_500)
    assert found.rmse == pytest.approx(((500 * 4 + 1_000) / 1_500) ** 0.5)
    assert found.r2 == pytest.approx(1 - found.rmse**2 / numbers[500:].var())
    assert found.late == 1.0


def test_the_r2_of_a_constant_label_is_shown_as_undefined() -> None:
    found = Scores.of(np.full(100, 3.1), np.full(100, 3.0), first=50)
    line = table([Run("Funnel", "as served", 0, [found])]).splitlines()[1]
    assert line.split()[-4:] == ["0.1000", "0.1000", "–", "–"]


def test_a_floor_that_beats_funnel_is_named_first() -> None:
    own = Run("Funnel", "as served", 0, [Scores(2.0, 3.0, 0.5, 2.0)])
    floors = [
        Run("the mean", "default", 1, [Scores(3.0, 3.0, 0.0, 3.0)]),
        Run("the last", "default", 1, [Scores(1.0, 2.0, 0.7, 1.0)]),
    ]
    assert warning(own, floors) == (
        "Funnel is worse than a floor: its MAE is 2.0000; the last (1.0000); "
        "its RMSE is 3.0000; the last (2.0000)\n\n"
    )
    assert warning(own, floors[:1]) == ""
    wide = [Run("the mean", "default", 1, [Scores(3.0, 2.9, 0.1, 3.0)])]
    assert warning(own, wide) == (
        "Funnel is worse than a floor: its RMSE is 3.0000; the mean (2.9000)\n\n"
    )
    assert [line.split()[1] for line in table([own, *floors]).splitlines()[1:]] == [
        "last", "as", "mean",
    ]  # fmt: skip


def batch(inputs: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", numbers: object) -> RowBatch:
    n = len(inputs)
    return RowBatch(
        Rows(()), inputs.astype(np.float32), np.empty(0, np.int32), np.empty(0, np.uint64),
        np.empty(0, np.float32), np.zeros(n, np.int64), np.asarray(numbers, np.float64),
    )  # fmt: skip


def test_floors_know_what_came_before() -> None:
    first, second = (batch(np.zeros((3, 1)), own) for own in ([1, 2, 6], [9, 9, 9]))
    for learner, before, after in ((Mean(), 0.0, 3.0), (LastNumber(), 0.0, 6.0)):
        assert learner.predict(first).tolist() == [before] * 3
        learner.learn(first)
        assert learner.predict(second).tolist() == [after] * 3


LINEAR = {
    "scikit-learn": (ScikitNumbers, "eta0 0.01, penalty None"),
    "vw": (VowpalWabbitNumbers, "-l 0.5, standardized target"),
    "river-linear": (RiverLinear, "SGD 0.01"),
}


def test_scikit_learn_learns_an_intercept_at_its_whole_rate() -> None:
    """The only column says nothing, and nine of ten labels are 1."""
    learner = ROW_PEERS["scikit-learn"].settings["eta0 0.01, a column of ones"](2, 0)
    assert isinstance(learner, ScikitRows)
    one = replace(batch(np.zeros((50, 1)), []), labels=(np.arange(50) % 10 > 0).astype(np.int64))
    for _ in range(40):
        learner.learn(one)
    assert learner.answer(one)[1][:, 1] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_peers_learn_a_line_far_from_zero(name: str) -> None:
    peer = NUMBER_PEERS[name]
    if peer.missing:
        pytest.skip(peer.missing)
    kind, setting = LINEAR[name]
    learner: NumberLearner = peer.settings[setting](0)
    assert isinstance(learner, kind)
    rng = np.random.default_rng(0)
    for _ in range(60):
        inputs = rng.normal(size=(50, 3))
        numbers = 1_000 + inputs @ np.array([30.0, -20.0, 10.0])
        missed = np.abs(learner.predict(one := batch(inputs, numbers)) - numbers).mean()
        learner.learn(one)
    assert missed < 3.0
