"""Every key and every dense place can be read back."""

from hypothesis import given

from service.fold.schema.encode import encode
from service.fold.schema.kinds import Kind
from service.fold.schema.names import dense_names, named_keys
from service.fold.schema.schema import Column, Schema
from streams.rows.rows import Rows
from tests.service.fold.schema.some_rows import rows, schemas


@given(schemas())
def test_every_key_has_a_name(made: tuple[Schema, Rows]) -> None:
    schema, found = made
    names = named_keys(schema, found)
    assert set(encode(schema, found).keys.tolist()) <= names.keys()
    assert len(dense_names(schema)) == schema.width


def test_names_are_those_that_people_read() -> None:
    schema = Schema(
        (Column("plan", Kind.CATEGORY), Column("at", Kind.TIME), Column("paid", Kind.BOOL),
         Column("note", Kind.TEXT), Column("age", Kind.NUMBER)),
        crosses=(("plan", "at:hour"),),
    )  # fmt: skip
    found = rows({"plan": ["basic"], "at": ["2026-01-02T13:00Z"], "note": ["Late fee"]})
    encoded = encode(schema, found)
    names = named_keys(schema, found)
    assert [names[key] for key in encoded.keys.tolist()] == [
        "plan=basic", "at:hour=13", "at:weekday=4", "paid is missing",
        "plan=basic × at:hour=13",
        "note=late", "note=fee", "note=late fee", "age is missing",
    ]  # fmt: skip
    assert dense_names(schema) == ("at:age", "age")
