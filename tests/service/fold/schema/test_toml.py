"""A TOML file declares a schema, and its errors name the key and what is allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fold.schema.kinds import ColumnPolicy, Kind, LabelPolicy, Part
from service.fold.schema.schema import Column, Schema
from service.fold.schema.toml import SchemaError, from_toml, to_toml
from streams.rows.rows import Rows
from tests.service.fold.schema.some_rows import schemas

SHOP = """
label = "left"
new_columns = "reject"

[columns]
age = "number"
plan = "category"
at = { type = "time", parts = ["weekday", "hour"] }
"paid by" = "bool"
later = "auto"

[cross]
pairs = [["plan", "hour"], ["plan", "paid by"]]

[labels]
names = ["stay", 1, true]
new = "other"
"""
NAMES = st.text(min_size=1).filter(lambda name: name != "label")
COLUMNS = st.builds(Column, NAMES, st.none() | st.sampled_from(Kind)) | st.builds(
    lambda name, parts: Column(name, Kind.TIME, parts=tuple(parts)),
    NAMES,
    st.lists(st.sampled_from(Part), min_size=1, unique=True),
)


def test_a_file_declares_all_of_a_schema() -> None:
    assert from_toml(SHOP) == Schema(
        (
            Column("age", Kind.NUMBER),
            Column("plan", Kind.CATEGORY),
            Column("at", Kind.TIME, parts=(Part.WEEKDAY, Part.HOUR)),
            Column("paid by", Kind.BOOL),
            Column("later"),
        ),
        ("stay", "1", "true"),
        (("plan", "at:hour"), ("plan", "paid by")),
        "left",
        ColumnPolicy.REJECT,
        LabelPolicy.OTHER,
        max_classes=4,
    )


def test_an_empty_file_is_the_default() -> None:
    assert from_toml("") == Schema()


def test_the_star_crosses_all_pairs() -> None:
    schema = from_toml('cross.pairs = "*"')
    assert schema.crosses == (("*", "*"),)
    assert from_toml(to_toml(schema)) == schema


@given(
    st.lists(COLUMNS, unique_by=lambda column: column.name),
    st.lists(st.text(), unique=True),
    st.sampled_from(ColumnPolicy),
    st.sampled_from([LabelPolicy.GROW, LabelPolicy.OTHER]),
)
def test_toml_and_back_is_the_same_schema(
    columns: list[Column], labels: list[str], new_columns: ColumnPolicy, new_labels: LabelPolicy
) -> None:
    schema = Schema(tuple(columns), tuple(labels), new_columns=new_columns, new_labels=new_labels)
    assert from_toml(to_toml(schema)) == schema


@given(schemas())
def test_a_grown_schema_can_be_declared(made: tuple[Schema, Rows]) -> None:
    schema, _ = made
    if schema.crosses[1:]:
        schema = Schema(schema.columns, schema.labels)
    declared = from_toml(to_toml(schema))
    assert [(c.name, c.kind) for c in declared.columns] == [
        (c.name, c.kind) for c in schema.columns
    ]
    assert declared.labels == schema.labels
    assert not any(column.late for column in declared.columns)
    assert from_toml(to_toml(declared)) == declared


def test_the_draft_has_comments() -> None:
    text = to_toml(Schema((Column("age", Kind.NUMBER), Column("new")), ("stay",)))
    assert 'age = "number"\nnew = "auto"  # no value was seen yet\n' in text
    assert 'names = ["stay"]' in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[columns", "not TOML"),
        ("colums = 1", "unknown key 'colums'; did you mean 'columns'. Allowed are label"),
        ("columns = 1", "columns is no table"),
        ('columns.a = "numbr"', "columns.a: \"numbr\" is not allowed; did you mean 'number'."),
        ("columns.a = 3", "columns.a: 3 is not allowed. Choose one of number, category"),
        ('columns."" = "number"', "cannot be empty"),
        ("columns.a = {}", "columns.a.type is missing"),
        ('columns.a = { type = "number", log = true }', "columns.a.log is not supported"),
        ('columns.a = { type = "number", bins = 3 }', "columns.a.bins is not supported"),
        ('columns.a = { type = "category", min_count = 3 }', "min_count is not supported"),
        ('columns.a = { type = "category", ttl = "30d" }', "columns.a.ttl is not supported"),
        ('columns.a = { type = "number", parts = ["hour"] }', "columns.a.parts: a time has"),
        ('columns.a = { type = "time", parts = ["minute"] }', '"minute" is not allowed'),
        ('columns.a = { type = "time", part = ["hour"] }', "unknown key 'columns.a.part'; did you"),
        ('columns.label = "number"', "columns.label: this is the column of labels"),
        ('new_columns = "drop"', "new_columns: .* Choose one of add, ignore, reject"),
        ("label = 1", "label: 1 is no name"),
        ("max_columns = 0", "max_columns: 0 is not an integer of at least 1"),
        ("cross.pairs = 1", "cross.pairs: 1 is neither a list of pairs"),
        ('cross.pairs = [["a"]]', r"cross.pairs\[0\]: .* is no pair"),
        ('cross.pairs = [["a", "a"]]', "is no pair of two columns"),
        ('cross.pairs = [["a", "b"]]\ncolumns = { a = "number" }', "only category, bool and time"),
        (
            'new_columns = "reject"\ncross.pairs = [["plan", "plam"]]\n'
            '[columns]\nplan = "category"',
            "unknown column 'plam'; did you mean 'plan'.",
        ),
        ("labels.names = 1", "labels.names: 1 is no list"),
        ('labels.names = ["1", 1]', r"labels.names\[1\]: '1' is there twice"),
        ("labels.names = [inf]", "inf is not finite"),
        ("labels.names = [[]]", "is neither a text nor a number"),
        ('labels.new = "reject"', "needs labels.names"),
        (
            'labels = { names = ["a", "b"], max = 1 }',
            "labels.max: 1 is not an integer of at least 2",
        ),
        ('labels = { names = ["a"], new = "other", max = 1 }', "at least 2"),
        ("labels.max = true", "labels.max: true is not an integer"),
    ],
)
def test_what_is_not_allowed_is_named(text: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        from_toml(text)
