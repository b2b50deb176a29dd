"""The tables of `tests.benchmarks.results`: streams by learners."""

import math
import statistics
from collections.abc import Callable, Sequence

from service.commands.comparisons.comparison import interval
from tests.benchmarks.accuracy.cells import Found
from tests.benchmarks.accuracy.plan import ACCURACY, BATCHES, CONTENDERS, LOSS, SELECTION, chosen
from tests.benchmarks.accuracy.standings import ECE, FIRST, Place, place
from tests.benchmarks.accuracy.study import SOURCES
from tests.benchmarks.measure import table


def columns_at(found: Found, batch: int) -> list[str]:
    """Return the columns of which something has been run."""
    return [
        column
        for column, contender in CONTENDERS.items()
        if any(place(found, name, contender, batch) for name in SOURCES)
    ]


def grid(
    found: Found, batch: int, cell: Callable[[Place], str], best: str = "", by: str = ACCURACY
) -> str:
    """Return a table of streams by learners.

    Args:
        found: the results.
        batch: examples a batch.
        cell: returns the text of a place.
        best: the score whose largest mean is bold in each row; empty for none.
        by: the score by which settings were chosen.
    """
    columns, rows = columns_at(found, batch), []
    for name in SOURCES:
        places = [place(found, name, CONTENDERS[column], batch, by) for column in columns]
        texts = ["–" if one is None else cell(one) for one in places]
        if best:
            means = [-math.inf if one is None else one.mean(best) for one in places]
            texts = [
                f"**{text}**" if mean == max(means) > -math.inf else text
                for text, mean in zip(texts, means, strict=True)
            ]
        rows.append((name, length_of(found, name), *texts))
    return table(("stream", "examples", *(CONTENDERS[column].title for column in columns)), rows)


def length_of(found: Found, name: str) -> str:
    """Return the examples of a stream that have been learned, as text."""
    lengths = [c.examples for c in found if c.stream == name and c.seed not in SELECTION]
    return f"{max(lengths):,}" if lengths else "–"


def percent(values: Sequence[float]) -> str:
    """Return mean, interval and number of seeds.

    >>> percent([0.5]), percent([0.5, 0.5])
    ('50.0', '50.0 ± 0.0 (2)')
    """
    mean = f"{100 * statistics.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {100 * interval(values):.1f} ({len(values)})"


def accuracies(found: Found, batch: int) -> str:
    return grid(found, batch, lambda one: percent(one.values(ACCURACY)), ACCURACY)


def probabilities(found: Found, batch: int) -> str:
    return grid(
        found, batch, lambda one: f"{one.mean(LOSS):.3f} / {100 * one.mean(ECE):.1f}", by=LOSS
    )


def firsts(found: Found) -> str:
    return grid(found, 10, lambda one: percent(one.values(FIRST)), FIRST)


def speeds(found: Found) -> str:
    """Return the median speed of each learner over the streams that it has run."""
    rows = []
    for contender in CONTENDERS.values():
        cells = []
        for batch in BATCHES:
            places = [place(found, name, contender, batch) for name in SOURCES]
            rates = [
                int(length_of(found, name).replace(",", "")) / max(one.mean("seconds"), 0.01)
                for name, one in zip(SOURCES, places, strict=True)
                if one
            ]
            shown = f"{statistics.median(rates):,.0f} ({len(rates)})" if rates else "–"
            cells.append(shown)
        if set(cells) != {"–"}:
            rows.append((contender.title, *cells))
    return (
        "Examples a CPU second of the process, to answer and to learn: the median over streams, "
        "whose\nnumber stands in brackets. The machine was shared, so rates are low. Two columns "
        "with different\nnumbers have run on different streams.\n\n"
    ) + table(("learner", *(f"@{batch}" for batch in BATCHES)), rows)


def settings(found: Found) -> str:
    """Return the settings at which peers are shown."""
    rows = []
    for contender in CONTENDERS.values():
        if len(contender.settings) > 1:
            for batch in BATCHES:
                cells = [chosen(found, name, contender, batch) or "–" for name in SOURCES]
                if set(cells) != {"–"}:
                    rows.append((f"{contender.title} @{batch}", *cells))
    return table(("by accuracy", *SOURCES), rows)
