"""`funnel compare --delay`: all learners and floors answer from the labels that have come."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from service.cli import main
from service.commands.comparisons.evaluation import Run, Served, evaluate
from service.settings import load_settings
from streams.batch import Batch, Features, Labels
from streams.delays.delay import Delay
from streams.peers.peers import PEERS, Peer
from streams.sources.catalog import get

SETTINGS = load_settings({"model": "logistic", "features": 3, "classes": 2, "batch_size": 50})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def run(delay: str | None, examples: int = 1_000, seed: int = 0) -> dict[str, Run]:
    stream = get("sea", examples)
    one = PEERS["sgd"].settings["lr 0.03"]
    peers = {"sgd": Peer("SGD", {"lr 0.03": one})}
    found = evaluate(stream, SETTINGS, peers, [seed], delay=Delay.parse(delay) if delay else None)
    return {one.learner.partition(",")[0]: one for one in found}


def test_a_delay_of_no_examples_is_none() -> None:
    plain, delayed = run(None), run("0")
    assert plain.keys() == delayed.keys()
    for name, one in plain.items():
        assert delayed[name].outcomes[0].tolist() == one.outcomes[0].tolist()
        assert delayed[name].scores[0] == pytest.approx(one.scores[0], abs=1e-6), name


def test_the_service_learns_what_has_come_in_its_order() -> None:
    batches = list(get("sea", 1_000).batches(50))
    served, right = Served(SETTINGS), []
    for k, batch in enumerate(batches):
        right.append(served.predict(batch.features) == batch.labels)
        if k >= 3:
            served.learn(batches[k - 3])
    [found] = [one for name, one in run("151").items() if name.startswith("Funnel")]
    assert found.outcomes[0].tolist() == np.concatenate(right).tolist()


@pytest.mark.parametrize("delay", ["70", "exp:70", "1=200,0=5", "1=never,9"])
def test_floors_answer_from_the_labels_that_have_come(delay: str) -> None:
    labels = np.concatenate([batch.labels for batch in get("sea", 1_000).batches(50)])
    times = np.arange(1_000) + Delay.parse(delay).draws(0).next([*map(str, labels.tolist())])

    def answers(rule: Callable[[Labels], int]) -> list[bool]:
        found = []
        for start in range(0, 1_000, 50):
            come = [k for k in range(start) if times[k] <= start]
            known = labels[sorted(come, key=lambda k: (times[k], k))]
            found += (labels[start : start + 50] == rule(known)).tolist()
        return found

    def majority(known: Labels) -> int:
        return int(np.bincount(known, minlength=2).argmax())

    found = run(delay)
    assert found["majority"].outcomes[0].tolist() == answers(majority)
    if "never" not in delay:
        scores = found["no_change"].scores[0]
        assert scores["log_loss"] > 0.5


def test_peers_learn_later_too() -> None:
    """A learner that is asked more often than it learns learns in the same order."""
    learned: list[float] = []

    class Noting:
        def predict(self, features: Features) -> Labels:
            return np.zeros(len(features), np.int64)

        def learn(self, batch: Batch) -> None:
            learned.extend(batch.labels.tolist())

    stream = get("sea", 500)
    peers = {"noting": Peer("Noting", {"": lambda *_: Noting()})}
    evaluate(stream, SETTINGS, peers, [0], delay=Delay.parse("120"))
    labels = np.concatenate([batch.labels for batch in stream.batches(50)])
    assert learned == labels[:381].tolist()


def test_what_a_delay_costs_is_shown_for_rows_and_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for stream in ("orders", "trump_approval"):
        options = ["--examples", "600", "--peers", "majority" if stream == "orders" else "mean"]
        command = ["compare", stream, *options, "--model", "logistic"]
        shown = []
        for delay in ((), ("--delay", "0"), ("--delay", "exp:200")):
            assert main([*command, *delay]) == 0
            shown.append(capsys.readouterr().out)
        plain, at_once, later = shown
        assert plain.partition("\n\n")[2].partition("\nAccuracy")[0][:200] in at_once
        assert ("@100 (labels come in batches of 100)" in plain) == (stream == "orders")
        assert "@100" not in later
        assert "Labels come later than their questions, by --delay exp:200" in later
        assert "Labels come later" not in plain


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["sea", "--delay", "30s"], "no time passes here"),
        (["sea", "--delay", "soon"], "is no delay"),
    ],
)
def test_a_delay_that_cannot_be_simulated_is_refused(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["compare", *options])
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        (["sea", "--delay", "2=5"], 2, "names the label '2'"),
        (["trump_approval", "--delay", "1=5"], 2, "are numbers to predict"),
        (["trump_approval", "--examples", "500", "--delay", "never"], 1, "comes before its end"),
    ],
)
def test_a_delay_that_does_not_fit_the_labels_is_refused(
    options: list[str], status: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *options, "--examples", "500", "--peers", "all"]) == status
    assert why in capsys.readouterr().err
