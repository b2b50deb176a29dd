"""The orders of a shop, made up and without an end: rows with names whose relation drifts.

Each order has a product and a customer (after Zipf's law), a country, a channel, a carrier, a
price, a number of items, a discount, a note of some words, and the time at which it came. A third
of the carriers, most discounts and most notes are missing. The label says whether the order was
kept, returned or cancelled. It depends on all columns and on chance.

The relation drifts in two ways. At the beginning of each *season* it changes at once: the channels
and carriers, half of the products, the price, and the words of the notes get other effects. And all
the time the effects of the countries and of the hours turn, once around in `TURN` orders, while
prices rise and fall.

The rows are a function of the seed.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.rows.rows import Chunk, Rows
from streams.rows.times import TIME
from streams.rowstream import RowStream
from streams.sources.catalog import Shift
from streams.sources.names import EXAMPLES

NAME, LABEL = "orders", "outcome"
LABELS = ("kept", "returned", "cancelled")
SEASON, TURN = 15_000, 60_000
"""Orders in a season, and in a turn of what drifts gradually."""
BLOCK = 500
"""Orders made at once; a season is a multiple of it."""
PRODUCTS, CUSTOMERS = 3_000, 30_000
PRODUCT_EXPONENT, CUSTOMER_EXPONENT = 1.0, 0.8
COUNTRIES = ("DE", "FR", "IT", "ES", "PL", "NL", "SE", "AT", "DK", "PT", "FI", "IE")
CHANNELS = ("web", "app", "phone", "partner")
CARRIERS = ("post", "courier", "express", "locker", "pickup")
WORDS = ("gift", "wrap", "urgent", "second", "size", "smaller", "larger", "refund", "again",
         "please", "thanks", "wrong", "late", "birthday", "office", "neighbour")  # fmt: skip
WITHOUT_CARRIER, WITHOUT_DISCOUNT, WITHOUT_NOTE = 1 / 3, 0.7, 0.75
START = datetime(2026, 1, 1, tzinfo=UTC)
GAP_SECONDS = 40.0
"""Mean time between two orders."""
BIAS = (1.8, 0.2, -0.4)
"""Log odds of the labels without any effect."""
FAVOURITE = np.array([[1.0], [-0.5], [-0.5]])
"""Effects on the labels of one that is in favour of an order, [3, 1]."""

Numbers = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


class Truth(NamedTuple):
    """Effects on the log odds of the labels in a season, by label and value."""

    products: Numbers
    """[3, PRODUCTS]."""
    channels: Numbers
    """[3, channels]."""
    carriers: Numbers
    """[3, carriers]."""
    words: Numbers
    """[3, words]."""
    price: Numbers
    """[3], of a price that is e times as large."""


class Lasting(NamedTuple):
    """Effects that no season changes."""

    products: Numbers
    """[3, PRODUCTS]."""
    customers: Numbers
    """[3, CUSTOMERS]."""
    countries: Numbers
    """[3, 2, countries], at the beginning and a quarter of a turn later."""
    prices: Numbers
    """Logarithms, [PRODUCTS]."""


def orders(examples: int = EXAMPLES) -> RowStream:
    """Return the stream.

    Args:
        examples: its length, on which its rows and shifts do not depend.
    """
    shifts = tuple(Shift(i, f"season {i // SEASON + 1}") for i in range(0, examples, SEASON))
    return RowStream(NAME, LABEL, LABELS, examples, shifts, _blocks, is_drawn=True)


def _blocks(seed: int) -> Iterator[Rows]:
    lasting, rng = _lasting(seed), np.random.default_rng([seed, 0])
    shares = [
        zipf(PRODUCTS, PRODUCT_EXPONENT),
        zipf(CUSTOMERS, CUSTOMER_EXPONENT),
        zipf(len(COUNTRIES), 1.0),
    ]
    start, seconds = 0, 0.0
    while True:
        if start % SEASON == 0:
            truth = _truth(seed, start // SEASON, lasting)
        gaps = rng.exponential(GAP_SECONDS, BLOCK)
        times = seconds + np.cumsum(gaps)
        seconds = float(times[-1])
        drawn = [rng.choice(len(share), BLOCK, p=share) for share in shares]
        yield _block(drawn, times, start, truth, lasting, rng)
        start += BLOCK


def _block(
    drawn: list[Codes],
    times: Numbers,
    start: int,
    truth: Truth,
    lasting: Lasting,
    rng: np.random.Generator,
) -> Rows:
    """Return orders of these products, customers and countries, at these times."""
    products, customers, countries = drawn
    n = len(times)
    angles = 2 * np.pi * (start + np.arange(n)) / TURN
    channels = rng.choice(len(CHANNELS), n, p=(0.5, 0.3, 0.05, 0.15))
    carriers = rng.integers(len(CARRIERS), size=n)
    no_carrier = rng.random(n) < WITHOUT_CARRIER
    items = rng.geometric(0.6, n)
    discounts = rng.choice((5, 10, 15, 20, 30, 50), n).astype(float)
    no_discount = rng.random(n) < WITHOUT_DISCOUNT
    words = rng.integers(len(WORDS), size=(n, 3))
    counts = rng.integers(1, 4, n) * (rng.random(n) >= WITHOUT_NOTE)
    spoken = np.arange(3) < counts[:, None]
    deviations = rng.normal(0, 0.5, n)
    prices = lasting.prices[products] + deviations + 0.4 * np.sin(angles)

    countries_now = (
        np.cos(angles) * lasting.countries[:, 0, countries]
        + np.sin(angles) * lasting.countries[:, 1, countries]
    )
    hours = 2 * np.pi * times / 86_400
    odds = (
        np.array(BIAS)[:, None]
        + truth.products[:, products]
        + lasting.customers[:, customers]
        + countries_now
        + truth.channels[:, channels]
        + np.where(no_carrier, 0.0, truth.carriers[:, carriers])
        + (truth.words[:, words] * spoken).sum(axis=2)
        + truth.price[:, None] * (deviations + lasting.prices[products] - 3.0)
        + FAVOURITE * 0.4 * np.sin(hours + angles)
        - FAVOURITE * np.where(no_discount, 0.0, discounts / 25)
        - FAVOURITE * 0.3 * (items - 1)
    )
    labels = (odds + rng.gumbel(size=odds.shape)).argmax(axis=0)
    moments = [round(START.timestamp() * 1e6 + 1e6 * second) for second in times.tolist()]
    columns = {
        "product": pa.array([f"sku-{k:04}" for k in products.tolist()]),
        "customer": pa.array([f"c{k:05}" for k in customers.tolist()]),
        "country": _words(COUNTRIES, countries),
        "channel": _words(CHANNELS, channels),
        "carrier": _words(CARRIERS, carriers, no_carrier),
        "price": pa.array(np.exp(prices).round(2)),
        "items": pa.array(items.astype(np.int64)),
        "discount": pa.array(discounts, mask=no_discount),
        "note": pa.array(
            [
                " ".join(WORDS[k] for k in own[:count]) if count else None
                for own, count in zip(words.tolist(), counts.tolist(), strict=True)
            ],
            pa.string(),
        ),
        "at": pa.array(moments, pa.int64()).cast(TIME),
    }
    return Rows((Chunk(pa.RecordBatch.from_pydict(columns), _words(LABELS, labels)),))


def _lasting(seed: int) -> Lasting:
    rng = np.random.default_rng([seed, 1])
    labels = len(LABELS)
    return Lasting(
        rng.normal(0, 1.2, (labels, PRODUCTS)),
        rng.normal(0, 0.6, (labels, CUSTOMERS)),
        rng.normal(0, 1.5, (labels, 2, len(COUNTRIES))),
        rng.normal(3.0, 0.8, PRODUCTS),
    )


def _truth(seed: int, season: int, lasting: Lasting) -> Truth:
    """Return the effects in a season; the even products have the same in all of them."""
    rng = np.random.default_rng([seed, 2, season])
    labels = len(LABELS)
    drawn = rng.normal(0, 1.2, (labels, PRODUCTS))
    return Truth(
        np.where(np.arange(PRODUCTS) % 2, drawn, lasting.products),
        rng.normal(0, 1.0, (labels, len(CHANNELS))),
        rng.normal(0, 1.0, (labels, len(CARRIERS))),
        rng.normal(0, 0.8, (labels, len(WORDS))),
        rng.normal(0, 0.6, labels),
    )


def zipf(count: int, exponent: float) -> Numbers:
    """Return the shares of values after Zipf's law, the most frequent first, [count]."""
    weights = np.arange(1.0, count + 1) ** -exponent
    return np.asarray(weights / weights.sum(), np.float64)


def _words(
    names: tuple[str, ...], codes: Codes, missing: npt.NDArray[np.bool_] | None = None
) -> pa.StringArray:
    return pa.array([names[k] for k in codes.tolist()], pa.string(), mask=missing)
