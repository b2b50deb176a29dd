"""Examples as a client sends them, some at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from streams.client.values import Values

MAX_EXAMPLES = 65_536
"""Most examples in a request."""
REQUEST_BYTES = 8 << 20
"""About the most bytes of a request's body, a quarter of what a service takes by default."""


@dataclass(frozen=True)
class Body:
    """The body of a request."""

    content: bytes
    kind: str
    """Its Content-Type."""
    query: Mapping[str, str] = field(default_factory=dict)
    """Queries that name its columns."""


class Examples(Protocol):
    """Examples of one kind, with what a request says about them."""

    def __len__(self) -> int:
        """Return the number of examples, n."""

    @property
    def most(self) -> int:
        """How many of them make about REQUEST_BYTES."""

    def labelled(self, labels: Values, weights: Values | None) -> "Examples":
        """Return the same examples with their labels.

        Args:
            labels: [n], or the name of a column that holds them.
            weights: [n], or the name of a column; None for 1.

        Raises:
            InvalidExamples: there are more or fewer than n, or they have types that no model takes.
        """

    def identified(self, ids: Values) -> tuple["Examples", list[object]]:
        """Return the same examples with ids for labels that come later, and the ids.

        Args:
            ids: [n], or the name of a column that holds them.

        Raises:
            InvalidExamples: there are more or fewer than n.
        """

    def body(self, start: int, stop: int) -> Body:
        """Return the body of a request with the examples from ``start`` up to ``stop``.

        Raises:
            InvalidExamples: a value has a type that cannot be sent.
        """


def fitting(bytes_each: float) -> int:
    """Return how many examples make about REQUEST_BYTES.

    Args:
        bytes_each: mean size of one.
    """
    return max(1, min(MAX_EXAMPLES, int(REQUEST_BYTES / max(bytes_each, 1.0))))
