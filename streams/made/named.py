"""The streams of rows that are made up, by name."""

from collections.abc import Callable

from streams.made.churn import churn
from streams.made.clicks import clicks
from streams.orders import orders
from streams.rowstream import RowStream
from streams.sources.names import EXAMPLES


def _churn(examples: int) -> RowStream:
    """Return `churn`, reversed midway."""
    return churn(examples, examples // 2)


STREAMS: dict[str, Callable[[int], RowStream]] = {
    "orders": orders,
    "churn": _churn,
    "clicks": clicks,
}
"""Makers of the streams of `streams.sources.names.ROW_NAMES`, from their length."""


def named(name: str, examples: int = EXAMPLES) -> RowStream:
    """Return the stream of a name.

    Args:
        name: one of `streams.sources.names.ROW_NAMES`.
        examples: its length.
    """
    return STREAMS[name](examples)
