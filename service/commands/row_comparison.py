"""The service's learner compared with its peers on a file of rows, test-then-train."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import orjson
import torch

from service.commands.comparison import shown
from service.commands.evaluation import CPU, Run
from service.fold.inputs import filled, scaled
from service.fold.schema.encode import encode
from service.fold.schema.schema import Schema
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.standardizer import Standardizer
from service.fold.state import State
from service.fold.step import Fold
from service.settings import Settings
from streams.peers.row_learners import Codes, RowBatch, RowLearner
from streams.peers.row_peers import RowPeer
from streams.progress import progress_bar
from streams.rowfile import RowFile
from streams.rows.rows import Rows

EXPLANATION = """\
Accuracy is prequential: each batch is predicted before it is learned. Peers get the same numbers,
standardized, and the same keys (river's trees the rows themselves), and are shown at the best of
their settings, chosen for this file in hindsight.
"""


class ServedRows:
    """The learner that the service runs: a snapshot answers, and the fold learns.

    Args:
        settings: of the service.
        schema: with which it begins.
        labels: of the file, by number.
    """

    def __init__(self, settings: Settings, schema: Schema, labels: Sequence[str]) -> None:
        text = orjson.dumps(schema.to_json(), option=orjson.OPT_SORT_KEYS).decode()
        spec = replace(
            settings.spec, features=0, classes=0, schema=text, table_bits=settings.table_bits
        )
        self.state = State(spec, settings.hyperparameters, CPU)
        self._fold, self._evaluate = Fold(self.state), Evaluator(self.state.served)
        self._numbers = {label: k for k, label in enumerate(labels)}

    def predict(self, batch: RowBatch) -> Codes:
        """Return a label for each row; the first one before any is known."""
        if not self.state.schema.labels:
            return np.zeros(len(batch), np.int64)
        found = self._evaluate(Snapshot.of(self.state), batch.rows)[0].numpy()
        numbers = np.array([self._numbers[name] for name in self.state.schema.labels], np.int64)
        return np.asarray(numbers[found])

    def learn(self, batch: RowBatch) -> None:
        """Learn a batch, as a trainer does: first the change of the schema, then the step."""
        if changes := self.state.schema.changes_for(batch.rows):
            self.state.reshape(changes)
        self._fold.step(batch.rows)


def prepared(batches: Sequence[Rows], schema: Schema, labels: Sequence[str]) -> list[RowBatch]:
    """Return batches as peers take them: standardized by what came before, with keys."""
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
        codes = np.array([numbers[schema.labels[k]] for k in encoded.labels.tolist()], np.int64)
        found.append(
            RowBatch(rows, inputs.numpy(), encoded.rows, encoded.keys, encoded.values, codes)
        )
    return found


def outcomes_of(
    learner: RowLearner, batches: Sequence[RowBatch], progress: Callable[[int], object]
) -> np.ndarray:
    """Predict, then learn, batch after batch; return which predictions were right, bool [n]."""
    outcomes = []
    for batch in batches:
        outcomes.append(learner.predict(batch) == batch.labels)
        learner.learn(batch)
        progress(len(batch))
    return np.concatenate(outcomes)


def run(
    file: RowFile,
    settings: Settings,
    schema: Schema,
    peers: Mapping[str, RowPeer],
    skipped: Mapping[str, str],
    seeds: Sequence[int],
) -> int:
    """Compare, and print the table.

    Args:
        file: the rows.
        settings: of the service.
        schema: with which all begin.
        peers: that run, by name.
        skipped: why other peers do not, by name.
        seeds: of the peers; Funnel draws nothing.
    """
    torch.set_num_threads(settings.threads)
    for name, reason in skipped.items():
        sys.stderr.write(f"{name} is skipped: {reason}\n")
    labels = file.labels
    passes = 1 + len(seeds) * sum(len(peer.settings) for peer in peers.values())
    with progress_bar(f"{file.name}, {passes} runs", passes * len(file.rows)) as bar:
        batches = prepared(list(file.batches(settings.batch_size)), schema, labels)
        own = Run(f"Funnel ({settings.optimizer})", "as served", 0)
        served = ServedRows(settings, schema, labels)
        own.outcomes.append(outcomes_of(served, batches, bar.update))
        runs = [own]
        for peer in peers.values():
            tried = [Run(peer.title, name, len(peer.settings)) for name in peer.settings]
            for one, make in zip(tried, peer.settings.values(), strict=True):
                for seed in seeds:
                    learner = make(len(labels), seed)
                    one.outcomes.append(outcomes_of(learner, batches, bar.update))
            runs.append(max(tried, key=lambda one: one.accuracy))
    lines = [("learner", "setting", "accuracy")]
    for one in sorted(runs, key=lambda one: -one.accuracy):
        setting = f"{one.setting} (best of {one.tuned})" if one.tuned > 1 else one.setting
        lines.append((one.learner, setting, shown(one.accuracies, 4)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = "".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )
    sys.stdout.write(f"{file.name}: {len(file.rows):,} rows\n\n{table}\n{EXPLANATION}")
    return 0
