"""Rows that cannot be learned are refused; the message names the row, the column and a way out."""

from datetime import UTC, datetime

import pytest
from hypothesis import given

from service.fold.schema.encode import encode
from service.fold.schema.kinds import ColumnPolicy, Kind, LabelPolicy
from service.fold.schema.schema import Column, Schema
from streams.batch import InvalidBatchError
from streams.rows.rows import Rows, join
from tests.service.fold.schema.some_rows import chunk, rows, schemas

SCHEMA = Schema(
    (Column("age", Kind.NUMBER), Column("at", Kind.TIME), Column("paid", Kind.BOOL)),
    ("stay", "churn"),
    new_columns=ColumnPolicy.REJECT,
    new_labels=LabelPolicy.REJECT,
)


def refusal(found: Rows, schema: Schema = SCHEMA) -> tuple[str, str | None, int | None]:
    with pytest.raises(InvalidBatchError) as caught:
        schema.check(found)
    return str(caught.value), caught.value.field, caught.value.index


def test_a_wrong_kind_is_named_with_its_row_and_value() -> None:
    found = join([rows({"age": [1, 2, None]}), rows({"age": ["old", "3.5"]})])
    assert refusal(found) == (
        "column 'age' is a number; row 3 has \"old\". Send a number, or null where it is missing",
        "age",
        3,
    )


def test_each_kind_names_what_to_send() -> None:
    message, *where = refusal(rows({"at": ["2026-01-02", "soon"]}))
    assert message.startswith("column 'at' is a time; row 1 has \"soon\". Send an ISO 8601 time")
    assert where == ["at", 1]
    assert refusal(rows({"paid": [1, 0, 2]}))[0].startswith(
        "column 'paid' is true or false; row 2 has 2."
    )
    at = datetime(2026, 1, 2, tzinfo=UTC)
    assert "row 0 has 2026-01-02T00:00:00Z." in refusal(rows({"age": [at]}))[0]


def test_long_values_are_cut_in_messages() -> None:
    assert len(refusal(rows({"age": ["x" * 10_000]}))[0]) < 200


def test_the_first_wrong_row_is_named() -> None:
    found = Rows(
        (
            chunk({"paid": ["yes"], "age": [1]}),
            chunk({"age": [True], "at": [1]}),
            chunk({"age": ["x"], "at": [1]}),
        )
    )
    assert refusal(found)[1:] == ("paid", 0)
    assert refusal(found.part(1, 3))[1:] == ("at", 0)
    assert refusal(rows({"at": [7], "age": ["x"]}))[1:] == ("age", 0)


def test_an_unknown_column_is_refused_with_close_names() -> None:
    found = join([rows({"age": [1]}), rows({"agee": [1]})])
    message, *where = refusal(found)
    assert message.startswith("unknown column 'agee'; did you mean 'age'?")
    assert where == ["agee", 1]


def test_an_unknown_label_is_refused() -> None:
    message, *where = refusal(rows({"age": [1, 2, 3]}, ["stay", "churm", "gone"]))
    assert message.startswith("unknown label 'churm'; did you mean 'churn'?")
    assert where == ["labels", 1]


def test_labels_beyond_the_limit_are_refused_and_those_within_pass() -> None:
    schema = Schema(labels=("stay",), max_classes=2)
    schema.check(rows({"a": [1, 2, 3]}, ["churn", "stay", "churn"]))
    message, *where = refusal(rows({"a": [1, 2, 3]}, ["churn", "stay", "gone"]), schema)
    assert "all of its 2 classes" in message
    assert where == ["labels", 2]


def test_other_takes_any_label() -> None:
    schema = Schema(labels=("stay",), new_labels=LabelPolicy.OTHER, max_classes=2)
    schema.check(rows({"a": [1, 2]}, ["churn", "gone"]))


def test_new_and_undecided_columns_take_any_value() -> None:
    Schema((Column("a"),)).check(join([rows({"a": [1], "b": ["x"]}), rows({"a": ["x"], "b": [1]})]))
    Schema(new_columns=ColumnPolicy.REJECT).check(rows({"a": [1]}))


@given(schemas())
def test_rows_are_refused_exactly_if_a_value_would_be_missing(made: tuple[Schema, Rows]) -> None:
    schema, found = made
    values: dict[str, int] = {}
    for one in found.chunks:
        for name, array in zip(one.columns.schema.names, one.columns.columns, strict=True):
            values[name] = values.get(name, 0) + len(array) - array.null_count
    missing = encode(schema, found).missing
    lost = [
        column.name
        for column, absent in zip(schema.columns, missing, strict=True)
        if column.kind is not None and len(found) - absent < values.get(column.name, 0)
    ]
    unlabelled = Rows(tuple(type(one)(one.columns) for one in found.chunks))
    if lost:
        assert refusal(unlabelled, schema)[1] in lost
    else:
        schema.check(unlabelled)
