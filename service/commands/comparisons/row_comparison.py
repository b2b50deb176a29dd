"""The service's learner compared with its peers on a stream of rows, test-then-train."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import orjson
import torch

from service.commands.comparisons.comparison import (
    ACCURATE,
    below_floors,
    check_by,
    explained,
    heading,
    later_shown,
    table,
    taken_of,
)
from service.commands.comparisons.evaluation import (
    CPU,
    Run,
    add_served,
    floor_runs,
    later_of,
    name_of,
)
from service.commands.comparisons.tally import Tally
from service.fold.inputs import filled, scaled
from service.fold.schema.encode import encode
from service.fold.schema.schema import Schema
from service.fold.standardizer import Standardizer
from service.fold.state import State
from service.offline import Offline
from service.settings import Settings
from streams.batch import Labels
from streams.delays.arrivals import come_of, take_labels
from streams.delays.delay import AnyDelay
from streams.peers.library_learners import Codes
from streams.peers.row_learners import Probabilistic, RowBatch, RowLearner, steps_of, take_rows
from streams.peers.row_peers import RowPeer
from streams.prequential import Observe, Probabilities
from streams.progress import progress_bar
from streams.rows.rows import Rows
from streams.rowstream import RowStream

FLOOR_PEERS = ("majority", "no-change")
"""Peers that are not run: the floors are the same rules, and are always shown."""
EXPLANATION = """\
Accuracy is prequential: each batch is predicted before it is learned. Peers get the same numbers,
standardized, and the same keys (river's trees the rows themselves), and are shown at the best of
their settings by {by}, chosen for this stream in hindsight.
"""


class ServedRows:
    """The learner that the service runs: a snapshot answers, and the fold learns.

    Args:
        settings: of the service.
        schema: with which it begins.
        labels: of the stream, by number.
    """

    def __init__(self, settings: Settings, schema: Schema, labels: Sequence[str]) -> None:
        text = orjson.dumps(schema.to_json(), option=orjson.OPT_SORT_KEYS).decode()
        spec = replace(
            settings.spec, features=0, classes=0, schema=text, table_bits=settings.table_bits
        )
        self._offline = Offline(spec, settings.hyperparameters)
        self._numbers = {label: k for k, label in enumerate(labels)}

    @property
    def state(self) -> State:
        """The state of the learner."""
        return self._offline.state

    def predict(self, batch: RowBatch) -> Codes:
        """Return a label for each row; the first one before any is known."""
        return self.answer(batch)[0]

    def answer(self, batch: RowBatch) -> tuple[Codes, Probabilities]:
        """Return labels as `predict` does, and their probabilities, fp64 [n, labels].

        All are equally probable before any is known.
        """
        n, known = len(batch), self._offline.labels
        if not known:
            return np.zeros(n, np.int64), np.full((n, len(self._numbers)), 1 / len(self._numbers))
        labels, found = self._offline.answer(batch.rows)
        numbers = np.array([self._numbers[name] for name in known], np.int64)
        probabilities = np.zeros((n, len(self._numbers)))
        probabilities[:, numbers] = found
        return np.asarray(numbers[labels.astype(np.int64)]), probabilities

    def learn(self, batch: RowBatch) -> None:
        """Learn a batch, as a trainer does."""
        self._offline.learn(batch.rows)


def prepared(batches: Sequence[Rows], schema: Schema, labels: Sequence[str]) -> list[RowBatch]:
    """Return batches as peers take them: standardized by what came before, with keys.

    Args:
        batches: labelled rows.
        schema: with which all begin.
        labels: of the stream, by number; of none if labels are numbers to predict.
    """
    numbers = {label: k for k, label in enumerate(labels)}
    standardizer, found = Standardizer(0, CPU), []
    keep = torch.tensor(True)
    for rows in batches:
        schema = schema.after(schema.changes_for(rows))
        encoded = encode(schema, rows)
        if schema.width > standardizer.width:
            standardizer = standardizer.resized(schema.width)
        dense = filled(scaled(torch.from_numpy(encoded.dense)), standardizer)
        standardizer.start_blank(dense)
        inputs = standardizer.standardized(dense).nan_to_num()
        standardizer.update(dense, keep)
        codes, values = np.zeros(len(rows), np.int64), np.empty(0)
        if schema.numeric_labels:
            values = encoded.labels.astype(np.float64)
        else:
            known = [numbers[schema.labels[k]] for k in encoded.labels.tolist()]
            codes = np.array(known, np.int64)
        sparse = encoded.rows, encoded.keys, encoded.values
        found.append(RowBatch(rows, inputs.numpy(), *sparse, codes, values))
    return found


def outcomes_of(
    learner: RowLearner,
    batches: Sequence[RowBatch],
    progress: Callable[[int], object],
    observe: Observe | None = None,
    come: Sequence[Sequence[RowBatch]] | None = None,
) -> np.ndarray:
    """Predict, then learn, batch after batch; return which predictions were right, bool [n].

    Arguments as for `streams.prequential.prequential`.
    """
    outcomes = []
    for batch, known in steps_of(batches, come):
        probabilities = None
        if observe is not None and isinstance(learner, Probabilistic):
            predicted, probabilities = learner.answer(batch)
        else:
            predicted = learner.predict(batch)
        outcomes.append(predicted == batch.labels)
        if observe is not None:
            observe(predicted, probabilities, batch.labels)
        for one in known:
            learner.learn(one)
        progress(len(batch))
    return np.concatenate(outcomes)


def run(
    stream: RowStream,
    settings: Settings,
    schema: Schema,
    peers: Mapping[str, RowPeer],
    skipped: Mapping[str, str],
    seeds: Sequence[int],
    by: str = ACCURATE,
    delay: AnyDelay | None = None,
) -> int:
    """Compare, and print the table.

    Args:
        stream: the rows.
        settings: of the service.
        schema: with which all begin.
        peers: that run, by name.
        skipped: why other peers do not, by name.
        seeds: of the stream, if it is drawn, and of the peers; Funnel draws nothing.
        by: one of `service.commands.comparisons.comparison.BY`.
        delay: of the labels, in examples; None if each batch is learned before the next.

    Raises:
        FunnelError: the runs cannot be compared by this score.
    """
    check_by(by, len(stream.labels))
    torch.set_num_threads(settings.threads)
    for name, reason in skipped.items():
        sys.stderr.write(f"{name} is skipped: {reason}\n")
    labels = stream.labels
    own = Run(name_of(settings), "as served", 0)
    floors = floor_runs()
    peers = {name: peer for name, peer in peers.items() if name not in FLOOR_PEERS}
    tried = {
        name: [Run(peer.title, setting, len(peer.settings)) for setting in peer.settings]
        for name, peer in peers.items()
    }
    own_runs = len(seeds) if stream.is_drawn or delay is not None else 1
    passes = own_runs + len(seeds) * sum(map(len, tried.values()))
    batches: list[RowBatch] = []
    with progress_bar(f"{stream.name}, {passes} runs", passes * stream.examples) as bar:
        for seed in seeds:
            if stream.is_drawn or not batches:
                batches = prepared(list(stream.batches(settings.batch_size, seed)), schema, labels)
            given: list[Labels] = [batch.labels for batch in batches]
            if stream.is_drawn or not own.outcomes or delay is not None:
                later = later_of(delay, given, labels, settings.batch_size, seed)
                come = come_of(later, batches, take_rows)
                known = come_of(later, given, take_labels)
                served = ServedRows(settings, schema, labels)
                own_tally = Tally(len(labels))
                outcomes = outcomes_of(served, batches, bar.update, own_tally.add, come)
            own.outcomes.append(outcomes)
            add_served(served.state, given, len(labels), own, floors, own_tally, known)
            for name, peer in peers.items():
                for one, make in zip(tried[name], peer.settings.values(), strict=True):
                    learner, tally = make(len(labels), seed), Tally(len(labels))
                    one.outcomes.append(outcomes_of(learner, batches, bar.update, tally.add, come))
                    one.add(tally)
    best = [max(runs, key=lambda one: one.merit(by)) for runs in tried.values()]
    shown, shifts = [own, *floors.values(), *best], stream.shifts
    explanation = explained(EXPLANATION, any(taken_of(shown, shifts, by)), by)
    warning = below_floors(shown, settings.hyperparameters.is_balanced)
    count = f"{stream.examples:,} rows"
    head = heading(stream.name, count, len(seeds), settings.batch_size, delay)
    sys.stdout.write(
        f"{warning}{head}\n{table(shown, shifts, 4, by)}\n{explanation}{later_shown(delay)}"
    )
    return 0
