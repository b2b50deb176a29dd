"""Clicks on advertisements: numbers, and categories after Zipf's law, whose effects drift.

A row is one display of an advertisement: its site, advertisement, user, country, device and hour,
and how long the page has been open, how often the user saw it, how old it is, and its price. A
click depends on all of them and on chance.

The effects of the sites and of the numbers turn all the time, once around in `TURN` rows. At the
beginning of each *season* half of the advertisements are others: they have other effects under the
same names.

    >>> batch = next(known(100, examples=1_000))
    >>> len(batch), batch.rows.cells
    (100, 1000)

The rows are a function of the seed; their number changes none of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.made import known as made
from streams.made.known import Known, Numbers
from streams.orders import zipf
from streams.rowstream import RowStream
from streams.sources.catalog import Shift
from streams.sources.names import EXAMPLES

NAME, LABEL = "clicks", "clicked"
SEASON, TURN = 20_000, 120_000
"""Rows in a season, and in a turn of what drifts gradually."""
BLOCK = 500
"""Rows made at once; a season is a multiple of it."""
BIAS = -2.2
"""Log odds of a click without any effect."""
NUMBERS = ("seconds", "seen", "age", "price")


class Category(NamedTuple):
    """One category."""

    values: int
    """Number of its values."""
    exponent: float
    """Exponent of Zipf's law; 0 makes all values as frequent."""
    effect: float
    """Standard deviation of the effects of its values on the log odds."""


CATEGORIES = {
    "site": Category(1_000, 1.1, 0.6),
    "ad": Category(3_000, 1.1, 0.7),
    "user": Category(30_000, 0.8, 0.5),
    "country": Category(30, 1.0, 0.4),
    "device": Category(6, 0.7, 0.4),
    "hour": Category(24, 0.0, 0.3),
}

Codes = npt.NDArray[np.int64]


class Lasting(NamedTuple):
    """Effects on the log odds."""

    values: dict[str, Numbers]
    """By category and value; those of advertisements are replaced in part by each season."""
    turned: Numbers
    """Effects of the sites a quarter of a turn later, [sites]."""
    numbers: Numbers
    """Effects of one standard deviation, first and a quarter of a turn later, [2, numbers]."""


def clicks(examples: int = EXAMPLES) -> RowStream:
    """Return the stream.

    Args:
        examples: its length.
    """
    shifts = tuple(Shift(i, f"season {i // SEASON + 1}") for i in range(0, examples, SEASON))
    return made.row_stream(NAME, LABEL, _blocks, examples, shifts)


def known(size: int, seed: int = 0, examples: int = EXAMPLES) -> Iterator[Known]:
    """Yield the rows of `clicks` in batches of ``size``, with their true probabilities."""
    return made.batches(_blocks(seed), size, examples)


def _blocks(seed: int) -> Iterator[Known]:
    lasting, rng, start = _lasting(seed), np.random.default_rng([seed, 0]), 0
    shares = {name: zipf(own.values, own.exponent) for name, own in CATEGORIES.items()}
    ads = _ads(seed, 0, lasting)
    while True:
        if start % SEASON == 0:
            ads = _ads(seed, start // SEASON, lasting)
        codes = {name: rng.choice(len(own), BLOCK, p=own) for name, own in shares.items()}
        numbers = rng.normal(size=(BLOCK, len(NUMBERS)))
        odds = _odds(start, numbers, codes, ads, lasting)
        yield made.drawn(_columns(numbers, codes), odds, rng)
        start += BLOCK


def _odds(
    start: int, numbers: Numbers, codes: dict[str, Codes], ads: Numbers, lasting: Lasting
) -> Numbers:
    angles = 2 * np.pi * (start + np.arange(BLOCK)) / TURN
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = lasting.numbers @ numbers.T
    odds = BIAS + cos * first + sin * second + ads[codes["ad"]]
    odds += cos * lasting.values["site"][codes["site"]] + sin * lasting.turned[codes["site"]]
    for name in ("user", "country", "device", "hour"):
        odds += lasting.values[name][codes[name]]
    return np.asarray(odds)


def _lasting(seed: int) -> Lasting:
    rng = np.random.default_rng([seed, 1])
    values = {name: rng.normal(0, own.effect, own.values) for name, own in CATEGORIES.items()}
    site = CATEGORIES["site"]
    turned = rng.normal(0, site.effect, site.values)
    return Lasting(values, turned, rng.normal(0, 0.35, (2, len(NUMBERS))))


def _ads(seed: int, season: int, lasting: Lasting) -> Numbers:
    """Return the effects of the advertisements in a season; the even ones keep theirs."""
    own = CATEGORIES["ad"]
    drawn = np.random.default_rng([seed, 2, season]).normal(0, own.effect, own.values)
    return np.where(np.arange(own.values) % 2, drawn, lasting.values["ad"])


def _columns(numbers: Numbers, codes: dict[str, Codes]) -> dict[str, pa.Array]:
    found = {
        name: pa.array(values.round(3)) for name, values in zip(NUMBERS, numbers.T, strict=True)
    }
    for name, own in codes.items():
        found[name] = pa.array([f"{name}-{k}" for k in own.tolist()])
    return found
