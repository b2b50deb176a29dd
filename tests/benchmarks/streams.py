"""Prequential accuracy on the six streams, each sent over HTTP to its own service.

    python -m tests.benchmarks.streams

Each stream has 60,000 examples. The model is logistic regression, batches have 100 examples, and
all learners get standardized inputs. Funnel runs with the service's defaults on every stream.
Plain AdaGrad (the same inner optimizer at γp = γs = 0) runs at each learning rate of a grid; `best`
is the best one per stream in hindsight, an oracle that no user has.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from streams.batch import Batch
from streams.producer import HTTPTarget, produce
from streams.sources.catalog import IMAGE_STREAMS, get
from tests.benchmarks.measure import table
from tests.support.harness import serving, wait_for

GRID = (0.01, 0.03, 0.1, 0.3)


def accuracy(batches: list[Batch], **options: Any) -> float:
    """Send a stream to a new service; return its accuracy on each batch before learning it."""
    total = sum(map(len, batches))
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(Path(scratch), max_wait_ms=600_000, **options) as service,
        contextlib.closing(HTTPTarget(service.url)) as target,
        service.client() as client,
    ):
        produce(batches, target, name="stream")
        wait_for(lambda: f'funnel_examples_total{{source="http"}} {total:.1f}' in metrics(client))
        return float(client.get("/model").json()["accuracy"])


def metrics(client: Any) -> str:
    return str(client.get("/metrics").text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the streams [0]")
    parser.add_argument("--source", default="mnist", help="images: mnist or digits [mnist]")
    options = parser.parse_args()
    runs = len(IMAGE_STREAMS) * len(options.seeds) * (2 + len(GRID))
    rows = []
    with tqdm(total=runs, unit=" runs") as bar:
        for name in IMAGE_STREAMS:
            scores: dict[str, list[float]] = {}
            for seed in options.seeds:
                stream = get(name, options.examples, options.source)
                batches = list(stream.batches(500, seed))
                settings: dict[str, dict[str, Any]] = {
                    "pool": {},
                    "funnel": {"optimizer": "funnel"},
                }
                settings |= {f"{lr:g}": {"optimizer": "adagrad", "lr": lr} for lr in GRID}
                for label, setting in settings.items():
                    scores.setdefault(label, []).append(accuracy(batches, **setting))
                    bar.update()
            rows.append((name, {k: statistics.mean(v) for k, v in scores.items()}))
    heads = ["pool", "funnel", "best", *(f"{lr:g}" for lr in GRID)]
    means: dict[str, list[float]] = {}
    for _, found in rows:
        found["best"] = max(found[f"{lr:g}"] for lr in GRID)
        for key, value in found.items():
            means.setdefault(key, []).append(value)
    rows.append(("mean", {k: statistics.mean(v) for k, v in means.items()}))
    names = ("stream", "pool, the default", "one Funnel", "AdaGrad, best", *heads[3:])
    print(table(names, [(name, *(f"{found[h]:.3f}" for h in heads)) for name, found in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
