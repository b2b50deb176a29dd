"""Rows as dictionaries, sent as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from streams.client.encoding import JSON, to_json
from streams.client.errors import InvalidExamples
from streams.client.examples import Body, Examples, fitting
from streams.client.values import Values, list_of

SAMPLE = 64
"""Rows whose size is measured, to estimate that of all."""


@dataclass(frozen=True, eq=False)
class Records:
    """Rows, each with values by column."""

    rows: Sequence[Mapping[str, object]]
    more: Mapping[str, list[object]] = field(default_factory=dict)
    """Labels, weights and ids, [n], by their names in the body."""
    query: Mapping[str, str] = field(default_factory=dict)
    """The names of the columns that hold weights and ids, by the query that tells them."""

    def __len__(self) -> int:
        """Return the number of rows, n."""
        return len(self.rows)

    @property
    def most(self) -> int:
        """How many of them make about `streams.client.examples.REQUEST_BYTES`."""
        step = max(1, len(self) // SAMPLE)
        sample = [*self.rows[::step]]
        return fitting(len(to_json(sample, "rows")) / max(1, len(sample)))

    def labelled(self, labels: Values, weights: Values | None) -> Examples:
        """Return the same rows with their labels, as `Examples` demands.

        A single row may have a text as its label, so that a text names a column only if the row has
        it, or if there are more rows.
        """
        if self._is_column(labels):
            found = self._without(str(labels))
        else:
            found = self._with("labels", labels)
        if weights is None:
            return found
        if self._is_column(weights):
            return replace(found, query={**found.query, "weight": str(weights)})
        return found._with("weights", weights)

    def identified(self, ids: Values) -> tuple[Examples, list[object]]:
        """Return the same rows with their ids, as `Examples` demands."""
        if self._is_column(ids):
            found = replace(self, query={**self.query, "id": str(ids)})
            return found, self._column(str(ids))
        found = self._with("ids", ids)
        return found, found.more["ids"]

    def body(self, start: int, stop: int) -> Body:
        """Return the body of a request, as `Examples` demands."""
        rows = self.rows[start:stop]
        content: dict[str, object] = {"rows": rows}
        content |= {use: values[start:stop] for use, values in self.more.items()}
        raw = to_json(content, "rows")
        if b"null" in raw:
            _check_finite(rows, start)
        return Body(raw, JSON, self.query)

    def _is_column(self, values: Values) -> bool:
        return isinstance(values, str) and (len(self) != 1 or values in self.rows[0])

    def _column(self, name: str) -> list[object]:
        """Return the values of a column.

        Raises:
            InvalidExamples: a row does not have it.
        """
        for index, row in enumerate(self.rows):
            if name not in row:
                raise InvalidExamples(f"this row has no {name!r}", field=name, index=index)
        return [row[name] for row in self.rows]

    def _with(self, use: str, values: Values) -> "Records":
        return replace(self, more={**self.more, use: list_of(values, len(self), use)})

    def _without(self, name: str) -> "Records":
        """Return rows whose labels are one of their columns until now."""
        labels = self._column(name)
        rows = [{k: v for k, v in row.items() if k != name} for row in self.rows]
        return replace(self, rows=rows, more={**self.more, "labels": labels})


def _check_finite(rows: Sequence[Mapping[str, object]], first: int) -> None:
    """Refuse infinities, which JSON would turn into missing values.

    Args:
        rows: some of the rows.
        first: index of their first one in all rows.

    Raises:
        InvalidExamples: a value is infinite.
    """
    for index, row in enumerate(rows, first):
        for name, value in row.items():
            if isinstance(value, float | np.floating) and np.isinf(value):
                message = f"{name!r} holds {value}; numbers must be finite, and None if missing"
                raise InvalidExamples(message, field=name, index=index)
