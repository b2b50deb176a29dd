"""A program of many runs, each of which is a line in a file: it can be interrupted and resumed."""

import json
import sys
import time
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

K = TypeVar("K", bound=NamedTuple)
R = TypeVar("R")
Taken = TypeVar("Taken")


def run_lacking(
    path: Path,
    found: MutableMapping[K, R],
    lacking: Callable[[], Sequence[K]],
    inputs: Callable[[K], Taken],
    run: Callable[[K, Taken], R],
    group: Callable[[K], Hashable],
    seconds: float,
) -> int:
    """Run what is missing for some time; return the number of runs left.

    Args:
        path: of the file; a line is added after each run.
        found: the results so far; those of the runs are added.
        lacking: returns the keys of the missing runs, as far as the results decide them.
        inputs: returns what the runs of a group take, given the first of them.
        run: runs one.
        group: keys with an equal group take the same inputs.
        seconds: after which no run begins.
    """
    began = time.monotonic()
    interval = 0.1 if sys.stderr.isatty() else 30.0
    with path.open("a") as out, tqdm(unit=" runs", mininterval=interval) as bar:
        while keys := lacking():
            bar.total = bar.n + len(keys)
            if time.monotonic() - began > seconds:
                return len(keys)
            taken = inputs(keys[0])
            for key in keys:
                if group(key) != group(keys[0]):
                    break
                if time.monotonic() - began > seconds:
                    return len(keys)
                bar.set_postfix_str(" ".join(map(str, key)), refresh=False)
                found[key] = run(key, taken)
                out.write(json.dumps(key._asdict() | asdict(found[key])) + "\n")
                out.flush()
                bar.update()
    return 0
