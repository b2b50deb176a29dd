"""The cells that `tests.benchmarks.results` wants, and the setting at which a learner is shown."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from streams.peers.peers import PEERS
from streams.sources.catalog import Stream
from tests.benchmarks.accuracy.cells import Cell, Found
from tests.benchmarks.accuracy.quality_runs import OWN
from tests.benchmarks.accuracy.study import EXAMPLES, SOURCES

SELECTION = (100, 101)
"""Seeds on which settings are chosen; no cell of them is shown."""
SELECTED = 2_500
"""Examples of each such seed, at most."""
ACCURACY, LOSS = "accuracy", "log_loss"
BY = (ACCURACY, LOSS)
"""Scores by which a setting is chosen."""
SHORT = 2_500
"""Examples up to which Funnel learns one by one."""
ONE_BY_ONE = ("outdoor",)
"""Streams that Funnel learns one by one, however long they are."""


@dataclass(frozen=True)
class Contender:
    """A column: a learner, with the settings among which one is chosen."""

    title: str
    learner: str
    settings: tuple[str, ...] = ("default",)

    @property
    def is_own(self) -> bool:
        return self.learner in OWN


def _forests(name: str, title: str, learner: str, argument: str) -> dict[str, Contender]:
    """Return a column for each number of trees."""
    return {
        f"{name}-{n}": Contender(f"{title} {n}", learner, (f"{argument} {n}",))
        for n in (10, 30, 100)
    }


CONTENDERS: dict[str, Contender] = {
    "auto": Contender("**all families**", "auto"),
    "pool": Contender("the pool", "pool"),
    **_forests("arf", "ARF", "river-forest", "n_models"),
    **_forests("srp", "SRP", "river-patches", "n_models"),
    **_forests("lb", "LB", "river-bagging", "n_models"),
    **_forests("amf", "AMF", "river-mondrian", "n_estimators"),
    "knn": Contender(
        "KNN", "river-neighbours", tuple(f"n_neighbors {k}" for k in (1, 3, 5, 11))
    ),
    "hat": Contender("HAT", "river-tree"),
    "softmax": Contender(
        "softmax", "river-softmax",
        ("SGD 0.01", "SGD 0.03", "SGD 0.1", "AdaGrad 0.03", "AdaGrad 0.1", "AdaGrad 0.3",
         "AdaGrad 1"),
    ),
    "scikit-learn": Contender(
        "scikit-learn", "scikit-learn",
        ("eta0 0.001", "eta0 0.01", "eta0 0.03", "eta0 0.1", "optimal, its default"),
    ),
    "vw": Contender(
        "VW", "vw", ("-l 0.02", "-l 0.1", "-l 0.5", "-l 2.5", "-l 10")
    ),
}  # fmt: skip
LIGHT = ("auto", "arf-10", "amf-10", "knn", "softmax")
LINEAR = ("pool", "hat", "vw", "scikit-learn")
MORE = ("lb-10", "srp-10", "arf-30", "amf-30")
MOST = ("lb-30", "srp-30", "arf-100", "amf-100", "lb-100", "srp-100")
TIERS: tuple[tuple[int, tuple[int, ...], tuple[str, ...]], ...] = (
    (6_000, (10, 1, 100), LIGHT),
    (EXAMPLES, (10,), LIGHT),
    (EXAMPLES, (100,), LIGHT),
    (EXAMPLES, (1,), LIGHT),
    (EXAMPLES, (10, 100, 1), LINEAR),
    (EXAMPLES, (10, 100, 1), MORE),
    (EXAMPLES, (10, 100, 1), MOST),
)
"""Examples of a stream at most, sizes of batches and columns: those first whose cells say most."""
BATCHES = (100, 10, 1)


def selects(name: str, contender: Contender) -> bool:
    """Return whether other seeds choose the setting of a learner on a stream."""
    return SOURCES[name].is_drawn and len(contender.settings) > 1


def selection_cells(name: str, contender: Contender, batch: int) -> list[Cell]:
    """Return the cells that choose a setting."""
    examples = min(SELECTED, SOURCES[name].examples)
    return [
        Cell(name, contender.learner, setting, batch, seed, examples)
        for seed in SELECTION
        for setting in contender.settings
    ]


def cell_of(
    name: str, contender: Contender, setting: str, batch: int, seed: int, examples: int = EXAMPLES
) -> Cell:
    """Return a cell that is shown, of so many examples at most."""
    length = min(examples, SOURCES[name].examples)
    return Cell(name, contender.learner, setting, batch, seed, length)


def of_length(found: Found, examples: int | None = None) -> Found:
    """Return the cells that choose settings, and of the others those of one length a stream.

    Args:
        found: the results.
        examples: the length, at most; None for the one at which most cells of the stream have run.
    """
    counts = Counter((cell.stream, cell.examples) for cell in found if cell.seed not in SELECTION)
    if examples is None:
        longest = {name: n for (name, n), _ in sorted(counts.items(), key=lambda own: own[::-1])}
    else:
        longest = {name: min(examples, source.examples) for name, source in SOURCES.items()}
    return {
        cell: scores
        for cell, scores in found.items()
        if cell.seed in SELECTION or cell.examples == longest[cell.stream]
    }


def chosen(
    found: Found, name: str, contender: Contender, batch: int, by: str = ACCURACY
) -> str | None:
    """Return the setting at which a learner is shown on a stream; None if it is not known yet.

    Other seeds choose it if the stream has seeds. Otherwise it is the best in hindsight of those
    that have run.

    Args:
        found: the results so far, of one length a stream.
        name: of the stream.
        contender: the learner.
        batch: examples a batch.
        by: the score by which a setting is the best, one of BY.
    """
    if len(contender.settings) == 1:
        return contender.settings[0]
    if selects(name, contender):
        known = selection_cells(name, contender, batch)
        if not all(cell in found for cell in known):
            return None
    else:
        place = name, contender.learner, batch, 0
        known = [c for c in found if (c.stream, c.learner, c.batch, c.seed) == place]
    sign = -1.0 if by == LOSS else 1.0
    merits = {
        setting: statistics.mean(
            sign * getattr(found[cell], by) for cell in known if cell.setting == setting
        )
        for setting in contender.settings
        if any(cell.setting == setting for cell in known)
    }
    return max(merits, key=merits.__getitem__) if merits else None


def wanted(
    found: Found, name: str, contender: Contender, batch: int, seed: int, examples: int = EXAMPLES
) -> Iterator[Cell]:
    """Yield the cells of a place in a table, as far as the results so far decide them."""
    settings: Sequence[str] = contender.settings
    if selects(name, contender):
        yield from selection_cells(name, contender, batch)
        best = (chosen(found, name, contender, batch, by) for by in BY)
        settings = [*dict.fromkeys(setting for setting in best if setting is not None)]
    for setting in settings:
        yield cell_of(name, contender, setting, batch, seed, examples)


def lacking(
    found: Found,
    streams: Mapping[str, Stream],
    contenders: Sequence[str],
    batches: Sequence[int],
    seeds: Sequence[int],
    examples: int = EXAMPLES,
) -> list[Cell]:
    """Return the cells that are missing, those that say most first.

    Args:
        found: the results so far.
        streams: that can be had, by name.
        contenders: names of columns.
        batches: examples a batch.
        seeds: that are shown; a stream without seeds has the first one alone.
        examples: of a stream, at most.
    """
    cells, found = {}, of_length(found, examples)
    by_length = sorted(streams, key=lambda name: SOURCES[name].examples)
    for seed in seeds:
        for most, sizes, columns in TIERS:
            for name in by_length:
                source = SOURCES[name]
                if source.examples > most or (seed != seeds[0] and not source.is_drawn):
                    continue
                for batch in sizes:
                    for column in columns:
                        contender = CONTENDERS[column]
                        if (
                            batch in batches
                            and column in contenders
                            and _fits(streams[name], contender, batch)
                        ):
                            for cell in wanted(found, name, contender, batch, seed, examples):
                                cells[cell] = None
    return [cell for cell in cells if cell not in found]


def _fits(stream: Stream, contender: Contender, batch: int) -> bool:
    """Return whether a learner runs on a stream."""
    if not contender.is_own:
        return not PEERS[contender.learner].missing(stream)
    return batch > 1 or stream.name in ONE_BY_ONE or stream.examples <= SHORT
