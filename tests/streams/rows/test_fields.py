"""Rows that producers append to the log, some by hand."""

from io import BytesIO

import pyarrow as pa
import pytest

from streams.batch import InvalidBatchError
from streams.rows.entry import to_bytes
from streams.rows.fields import from_fields
from streams.rows.labels import weighted
from streams.rows.records import from_json
from streams.rows.rows import Rows

ROWS = from_json(b'{"rows": [{"a": 1}, {"a": 2}], "labels": ["x", "y"]}', True)


def stream() -> bytes:
    batch = ROWS.chunks[0].columns.append_column("y", ROWS.chunks[0].labels)
    sink = BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write(batch)
    return sink.getvalue()


def shown(rows: Rows) -> list[tuple[object, object]]:
    return [
        pair
        for chunk in rows.chunks
        if chunk.labels is not None
        for pair in zip(chunk.columns.to_pylist(), chunk.labels.to_pylist(), strict=True)
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {b"arrow": to_bytes(ROWS)},
        {b"arrow": stream()},
        {b"rows": b'[{"a": 1}, {"a": 2}]', b"labels": b'["x", "y"]', b"producer": b"p"},
    ],
)
def test_all_forms_of_an_entry_hold_the_same_rows(fields: dict[bytes, bytes]) -> None:
    assert shown(from_fields(fields, "y")) == shown(ROWS)


@pytest.mark.parametrize(
    "fields",
    [
        {b"arrow": to_bytes(weighted(from_json(
            b'{"rows": [{"a": 1, "w": 2}, {"a": 2, "w": 0.5}], "labels": ["x", "y"]}', True
        ), "w"))},
        {b"rows": b'[{"a": 1}, {"a": 2}]', b"labels": b'["x", "y"]', b"weights": b"[2, 0.5]"},
    ],
)  # fmt: skip
def test_rows_by_hand_may_have_weights(fields: dict[bytes, bytes]) -> None:
    found = from_fields(fields)
    assert shown(found) == shown(ROWS)
    assert found.weights is not None
    assert found.weights.tolist() == [2.0, 0.5]
    one = from_fields({b"row": b'{"a": 1}', b"label": b"x", b"weight": b"3"})
    assert one.weights is not None
    assert one.weights.tolist() == [3.0]
    with pytest.raises(InvalidBatchError, match="a weight must be a number"):
        from_fields({b"row": b'{"a": 1}', b"label": b"x", b"weight": b'"3"'})


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (b"churn", "churn"), (b'"churn"', "churn"), (b"1", "1"), (b"1.0", "1"), (b"007", "007"),
        (b"true", "true"), (b"True", "true"), (b".5", "0.5"), (b" x y ", "x y"),
        ("ü".encode(), "ü"), (b"36893488147419103233", "36893488147419103233"),
    ],
)  # fmt: skip
def test_a_label_by_hand_is_json_or_plain_text(label: bytes, text: str) -> None:
    assert shown(from_fields({b"row": b'{"a": 1}', b"label": label})) == [({"a": 1}, text)]


def test_a_row_with_a_long_id_may_have_a_label_of_plain_text() -> None:
    found = from_fields({b"row": b'{"a": 36893488147419103233}', b"label": b"churn"})
    assert shown(found) == [({"a": "36893488147419103233"}, "churn")]


UNLABELLED = to_bytes(from_json(b'{"row": {"a": 1}}', False))
BAD: list[tuple[dict[bytes, bytes], str, str | None, int | None]] = [
    ({b"batch": b""}, "no field 'arrow', 'rows' or 'row'", None, None),
    ({b"row": b'{"a": 1}'}, "no field 'label'", "label", None),
    ({b"rows": b'[{"a": 1}]'}, "no field 'labels'", "labels", None),
    ({b"rows": b'{"a": 1}', b"labels": b"[1]"}, "'rows' must be a JSON list", "rows", None),
    ({b"rows": b'[{"a": 1}]', b"labels": b"1"}, "'labels' must be a JSON list", "labels", None),
    ({b"rows": b'[{"a": 1}]', b"labels": b"x"}, "not JSON", None, None),
    ({b"row": b"a=1", b"label": b"1"}, "not JSON", None, None),
    ({b"row": b"[1]", b"label": b"1"}, "a row must be an object", None, 0),
    ({b"row": b'{"a": 1, "a": 2}', b"label": b"1"}, "'a' occurs twice", "a", 0),
    ({b"rows": b'[{"a": 1}, {"a":1, "a":1}]', b"labels": b"[1, 1]"}, "occurs twice", "a", 1),
    ({b"row": b'{"a": 1}', b"label": b""}, "label is missing", "label", 0),
    ({b"row": b'{"a": 1}', b"label": b"null"}, "label is missing", "label", 0),
    ({b"row": b'{"a": 1}', b"label": b"NA"}, "stands for a missing label", "label", 0),
    ({b"row": b'{"a": 1}', b"label": b"[1]"}, "not a list", "label", 0),
    ({b"row": b'{"a": 1}', b"label": b"inf"}, "not finite", "label", 0),
    ({b"row": b'{"a": 1}', b"label": b"1e999"}, "not finite", "label", 0),
    ({b"row": b'{"a": 1}', b"label": b"\xff"}, "not UTF-8", "label", None),
    ({b"row": b"[" * 100_000, b"label": b"1"}, "depth limit", None, None),
    ({b"arrow": b"PAR1"}, "no message begins at byte 0", None, None),
    ({b"arrow": stream()}, "name the column with the labels", None, None),
    ({b"arrow": UNLABELLED}, "have no labels", "labels", None),
]


@pytest.mark.parametrize(("fields", "message", "field", "index"), BAD)
def test_a_fault_is_named_with_its_place(
    fields: dict[bytes, bytes], message: str, field: str | None, index: int | None
) -> None:
    with pytest.raises(InvalidBatchError, match=message) as caught:
        from_fields(fields)
    assert (caught.value.field, caught.value.index) == (field, index)
