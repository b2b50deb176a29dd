"""Customers who leave or stay: 8 % leave, and what makes them leave is reversed at one row.

Eleven columns decide, seven numbers and four categories, each with an effect on the log odds that
the seed draws. Together they deviate by RELATION from their mean. From the row ``reversal`` on, all
effects have the other sign: those who were likeliest to stay are now likeliest to leave. The share
of those who leave stays the same.

    >>> batch = next(known(100, examples=1_000))
    >>> len(batch), batch.rows.cells
    (100, 1100)

The rows are a function of the seed; their number changes none of them.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.made import known as made
from streams.made.known import Known, Numbers
from streams.rowstream import RowStream
from streams.sources.catalog import Shift
from streams.sources.names import EXAMPLES

NAME, LABEL = "churn", "left"
POSITIVES = 0.08
"""Share of the rows with the label ``yes``, on average."""
RELATION = 1.5
"""Standard deviation of the log odds."""
BLOCK = 500
"""Rows made at once."""
SAMPLE = 100_000
"""Rows from which the log odds of a mean row are found."""
NUMBERS = {
    "months": (36.0, 12.0),
    "charge": (60.0, 20.0),
    "minutes": (300.0, 90.0),
    "data_gb": (12.0, 4.0),
    "calls_to_support": (2.0, 1.0),
    "days_since_visit": (10.0, 4.0),
    "devices": (3.0, 1.0),
}
"""Mean and standard deviation of each number."""
CATEGORIES = {
    "plan": ("basic", "plus", "family", "business"),
    "region": ("north", "south", "east", "west", "centre", "coast"),
    "channel": ("shop", "web", "phone"),
    "payment": ("card", "debit", "invoice", "prepaid"),
}
"""Values of each category; all are as frequent."""

Codes = npt.NDArray[np.int64]


class Effects(NamedTuple):
    """Effects on the log odds before the reversal."""

    numbers: Numbers
    """Effects of one standard deviation, [numbers]."""
    categories: tuple[Numbers, ...]
    """By category and value; the mean of each is 0."""
    bias: float
    """The log odds of a row without an effect."""


def churn(examples: int = EXAMPLES, reversal: int | None = None) -> RowStream:
    """Return the stream.

    Args:
        examples: its length.
        reversal: row from which on the relation is reversed; None for never.
    """
    shifts = [Shift(0, "begins")]
    if reversal is not None and 0 < reversal < examples:
        shifts.append(Shift(reversal, "reversed"))
    blocks = partial(_blocks, reversal)
    return made.row_stream(NAME, LABEL, blocks, examples, tuple(shifts))


def known(
    size: int, seed: int = 0, examples: int = EXAMPLES, reversal: int | None = None
) -> Iterator[Known]:
    """Yield the rows of `churn` in batches of ``size``, with their true probabilities."""
    return made.batches(_blocks(reversal, seed), size, examples)


def _blocks(reversal: int | None, seed: int) -> Iterator[Known]:
    effects, rng, start = _effects(seed), np.random.default_rng([seed, 0]), 0
    while True:
        numbers, codes = _values(BLOCK, rng)
        is_late = start + np.arange(BLOCK) >= (np.inf if reversal is None else reversal)
        odds = effects.bias + np.where(is_late, -1.0, 1.0) * _score(effects, numbers, codes)
        yield made.drawn(_columns(numbers, codes), odds, rng)
        start += BLOCK


def _values(count: int, rng: np.random.Generator) -> tuple[Numbers, list[Codes]]:
    """Draw standardized numbers, [count, numbers], and the categories, [count] each."""
    numbers = rng.normal(size=(count, len(NUMBERS)))
    return numbers, [rng.integers(len(values), size=count) for values in CATEGORIES.values()]


def _score(effects: Effects, numbers: Numbers, codes: list[Codes]) -> Numbers:
    of_codes = [own[code] for own, code in zip(effects.categories, codes, strict=True)]
    return np.asarray(numbers @ effects.numbers + np.sum(of_codes, axis=0))


def _effects(seed: int) -> Effects:
    rng = np.random.default_rng([seed, 1])
    numbers = rng.choice((-1.0, 1.0), len(NUMBERS)) * rng.uniform(0.5, 1.5, len(NUMBERS))
    each = [rng.normal(size=len(values)) for values in CATEGORIES.values()]
    each = [own - own.mean() for own in each]
    scale = RELATION / np.sqrt((numbers**2).sum() + sum(own.var() for own in each))
    effects = Effects(scale * numbers, tuple(scale * own for own in each), 0.0)
    score = _score(effects, *_values(SAMPLE, rng))
    return effects._replace(bias=_bias(np.concatenate([score, -score])))


def _bias(score: Numbers) -> float:
    """Return what has to be added to log odds so that POSITIVES is their mean probability."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        is_low = (1 / (1 + np.exp(-middle - score))).mean() < POSITIVES
        low, high = (middle, high) if is_low else (low, middle)
    return low


def _columns(numbers: Numbers, codes: list[Codes]) -> dict[str, pa.Array]:
    found: dict[str, pa.Array] = {
        name: pa.array((mean + deviation * values).round(2))
        for (name, (mean, deviation)), values in zip(NUMBERS.items(), numbers.T, strict=True)
    }
    for (name, values), code in zip(CATEGORIES.items(), codes, strict=True):
        found[name] = pa.array([values[k] for k in code.tolist()], pa.string())
    return found
