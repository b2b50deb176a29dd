"""Rows of a frame or a table of Arrow, sent as Arrow IPC streams."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from streams.client.errors import InvalidExamples
from streams.client.examples import Body, Examples, fitting
from streams.client.values import Values, column_of, plain
from streams.rows.bounds import MAX_CELLS
from streams.rows.ipc.arrow import free_name, stream_of

ARROW = "application/vnd.apache.arrow.stream"


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as columns."""

    columns: pa.Table
    query: Mapping[str, str] = field(default_factory=dict)
    """The names of the columns that hold labels, weights and ids, by the query that tells them."""

    @classmethod
    def of(cls, values: object) -> "Table":
        """Return the rows of a frame of pandas or polars, or of a table or batch of Arrow.

        Raises:
            InvalidExamples: a column has no type of Arrow, or two have one name.
        """
        try:
            if type(values).__module__.partition(".")[0] == "pandas":
                found = pa.Table.from_pandas(values, preserve_index=False)
            elif isinstance(values, pa.RecordBatch):
                found = pa.Table.from_batches([values])
            else:
                found = pa.table(values)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise InvalidExamples(" ".join(map(str, error.args)), field="rows") from error
        whole = found.combine_chunks()
        columns = [plain(_whole(whole.column(k))) for k in range(whole.num_columns)]
        return cls(pa.Table.from_arrays(columns, names=whole.column_names))

    def __len__(self) -> int:
        """Return the number of rows, n."""
        return int(self.columns.num_rows)

    @property
    def most(self) -> int:
        """How many of them make about `streams.client.examples.REQUEST_BYTES`."""
        by_size = fitting(self.columns.nbytes / max(1, len(self)))
        width: int = self.columns.num_columns
        return max(1, min(by_size, MAX_CELLS // max(1, width)))

    def labelled(self, labels: Values, weights: Values | None) -> Examples:
        """Return the same rows with their labels, as `Examples` demands."""
        found = self._with("label", labels)
        return found if weights is None else found._with("weight", weights)

    def identified(self, ids: Values) -> tuple[Examples, list[object]]:
        """Return the same rows with their ids, as `Examples` demands."""
        found = self._with("id", ids)
        return found, found.columns.column(found.query["id"]).to_pylist()

    def body(self, start: int, stop: int) -> Body:
        """Return the body of a request, as `Examples` demands."""
        part = self.columns.slice(start, stop - start)
        return Body(stream_of(part), ARROW, self.query)

    def _with(self, use: str, values: Values) -> "Table":
        """Return the same rows with one more column, or with one of them for a use."""
        names = self.columns.column_names
        if isinstance(values, str) and (values in names or len(self) != 1):
            if values not in names:
                message = f"the rows have no column {values!r}, only {', '.join(names[:20])}"
                raise InvalidExamples(message, field=values)
            return replace(self, query={**self.query, use: values})
        name = free_name(use, names)
        column = column_of(values, len(self), f"{use}s")
        columns = self.columns.append_column(name, column)
        return replace(self, columns=columns, query={**self.query, use: name})


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
