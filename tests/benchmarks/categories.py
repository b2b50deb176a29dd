"""Accuracy and cost of neighbours that compare categories, in turn with those that do not.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.categories [--seeds 0 1 2] [--batches 40]

Rows have four categories of six values and four numbers, in batches of 100. Either three of the
categories decide the label, by a table of random bits, or two of the numbers, by an exclusive or.
Accuracies are those of the last two thirds of the batches, medians over the seeds; the ratio is of
the CPU time of all steps, of pairs of runs.
"""

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
import orjson
import torch

from service.fold.spec import Spec
from service.fold.state import State
from service.fold.step import Fold
from streams.rows.records import from_json
from streams.rows.rows import Rows
from tests.benchmarks.measure import progress, table
from tests.support.named import a_row_spec, extend
from tests.support.states import CPU, HYPERPARAMETERS

VALUES, COLUMNS, BATCH = 6, 4, 100
FAMILIES: dict[str, tuple[str, ...]] = {"linear and neighbours": ("linear", "neighbours")}
FAMILIES |= {"all families": ()}


def of_kind(kind: str, seed: int, number: int) -> Rows:
    """Return a batch of rows in which the columns of a kind decide the label.

    Args:
        kind: categories or numbers.
        seed: of the stream.
        number: of the batch.
    """
    rng = np.random.default_rng((seed, number))
    places, numbers = rng.integers(0, VALUES, (BATCH, COLUMNS)), rng.normal(size=(BATCH, COLUMNS))
    labels = numbers[:, 0] * numbers[:, 1] > 0
    if kind == "categories":
        labels = np.random.default_rng(seed).integers(0, 2, (VALUES,) * 3)[tuple(places.T[:3])]
    rows = [
        {f"c{j}": f"value {v}" for j, v in enumerate(own)}
        | {f"n{j}": float(v) for j, v in enumerate(values)}
        for own, values in zip(places, numbers, strict=True)
    ]
    body = {"rows": rows, "labels": [("no", "yes")[int(label)] for label in labels]}
    return from_json(orjson.dumps(body), True)


def learned(kind: str, spec: Spec, seed: int = 0, batches: int = 40) -> tuple[float, float]:
    """Return the accuracy of the last two thirds of the batches, and the CPU seconds of all steps.

    Args:
        kind: which columns decide.
        spec: of the model.
        seed: of the stream.
        batches: how many there are.
    """
    state, found, seconds = State(spec, HYPERPARAMETERS, CPU), [], 0.0
    fold = Fold(state)
    for number in range(batches):
        rows = of_kind(kind, seed, number)
        extend(state, rows)
        begin = time.process_time()
        found.append(float(fold.step(rows).accuracy))
        seconds += time.process_time() - begin
    return float(np.mean(found[batches // 3 :])), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in ("categories", "numbers"):
        for name, families in FAMILIES.items():
            spec = replace(a_row_spec(model="auto"), is_narrow=True, families=families)
            runs = []
            for seed in args.seeds:
                progress(f"{kind}, {name}: seed {seed}")
                for compares in (False, True):
                    own = replace(spec, compares_codes=compares)
                    runs.append(learned(kind, own, seed, args.batches))
            old, new = (sorted(accuracy for accuracy, _ in runs[k::2]) for k in (0, 1))
            ratios = sorted(b / a for (_, a), (_, b) in zip(runs[::2], runs[1::2], strict=True))
            shown = (f"{statistics.median(x):.3f} ({x[0]:.3f} to {x[-1]:.3f})" for x in (old, new))
            ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            rows.append((kind, name, *shown, ratio))
    progress("")
    print(table(("what decides", "families", "numbers alone", "both compared", "CPU time"), rows))


if __name__ == "__main__":
    main()
