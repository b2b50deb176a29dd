"""The schema grows with its rows, and what it has never moves."""

from datetime import UTC, datetime

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fold.schema.changes import AddColumn, AddLabels, SetKind
from service.fold.schema.kinds import ColumnPolicy, Kind, LabelPolicy, Part
from service.fold.schema.schema import MAX_LATE, Column, Schema
from streams.rows.rows import Rows, join
from tests.service.fold.schema.some_rows import chunk, many_rows, policies, rows, schemas

NUMBER, CATEGORY, TIME, TEXT, BOOL = (
    Kind.NUMBER, Kind.CATEGORY, Kind.TIME, Kind.TEXT, Kind.BOOL,
)  # fmt: skip


def grown(schema: Schema, found: Rows) -> Schema:
    return schema.after(schema.changes_for(found))


def kinds(schema: Schema) -> dict[str, Kind | None]:
    return {column.name: column.kind for column in schema.columns}


def test_the_first_batch_makes_the_schema() -> None:
    found = rows(
        {
            "age": [31, None],
            "plan": ["basic", "pro"],
            "at": [datetime(2026, 1, 2, tzinfo=UTC), None],
            "paid": [True, False],
            "note": ["the parcel came too late", "the bill was far too high"],
            "gone": [None, None],
        },
        ["stay", "churn"],
    )
    schema = grown(Schema(), found)
    assert kinds(schema) == {
        "age": NUMBER, "plan": CATEGORY, "at": TIME, "paid": BOOL, "note": TEXT, "gone": None,
    }  # fmt: skip
    assert schema.labels == ("stay", "churn")
    assert (schema.width, schema.version) == (2, 7)


@given(many_rows, policies)
def test_rows_extend_the_schema_once(found: Rows, schema: Schema) -> None:
    assert grown(schema, found).changes_for(found) == ()


@given(st.lists(many_rows, min_size=2, max_size=4), policies)
def test_indices_and_places_never_move(batches: list[Rows], schema: Schema) -> None:
    for found in batches:
        after = grown(schema, found)
        names = [column.name for column in after.columns]
        assert names[: len(schema.columns)] == [column.name for column in schema.columns]
        assert after.labels[: len(schema.labels)] == schema.labels
        assert after.dense[: schema.width] == schema.dense
        assert after.version == schema.version + len(schema.changes_for(found))
        schema = after


@given(schemas(), many_rows)
def test_a_decided_column_keeps_its_kind(made: tuple[Schema, Rows], found: Rows) -> None:
    schema, _ = made
    after = kinds(grown(schema, found))
    assert {name: kind for name, kind in kinds(schema).items() if kind is not None}.items() <= (
        after.items()
    )


@given(many_rows, many_rows, policies)
def test_changes_may_be_applied_one_by_one(one: Rows, two: Rows, schema: Schema) -> None:
    schema = grown(schema, one)
    changes = schema.changes_for(two)
    step = schema
    for change in changes:
        step = step.after([change])
    assert step == schema.after(changes)


@given(many_rows, policies)
def test_changes_depend_on_the_rows_and_not_on_how_they_are_cut(
    found: Rows, schema: Schema
) -> None:
    single = join([found.part(k, k + 1) for k in range(len(found))])
    assert schema.changes_for(single) == schema.changes_for(found)


@given(schemas())
def test_json_and_back_is_the_same_schema(made: tuple[Schema, Rows]) -> None:
    text = orjson.dumps(made[0].to_json())
    assert Schema.from_json(orjson.loads(text)) == made[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": [{"name": "a", "kind": "numbr"}]}, "columns.0.kind"),
        ({"columns": [{"name": 1}]}, "columns.0.name"),
        ({"sorts": 1}, "sorts"),
        ({"max_classes": "10"}, "max_classes"),
        ({"labels": ["a", "a"]}, "there twice"),
    ],
)
def test_json_that_is_no_schema_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schema.from_json(Schema().to_json() | change)


def test_an_undecided_column_gets_its_kind_from_its_first_values() -> None:
    schema = grown(Schema(), rows({"a": [None, None], "b": [1, 2]}))
    assert kinds(schema) == {"a": None, "b": NUMBER}
    found = rows({"a": [2.5, None], "b": [None, None]})
    assert schema.changes_for(found) == (SetKind("a", NUMBER),)
    assert schema.after(schema.changes_for(found)).dense == (1, 0)


def test_most_values_decide_the_kind() -> None:
    found = Rows((chunk({"a": ["x"]}), chunk({"a": [1, 2]}), chunk({"a": [True, None]})))
    assert kinds(grown(Schema(), found)) == {"a": NUMBER}
    tie = Rows((chunk({"a": [None, "x"]}), chunk({"a": [1]})))
    assert kinds(grown(Schema(), tie)) == {"a": CATEGORY}


def test_repeated_sentences_are_categories() -> None:
    repeated = ["a plan with many words", "one more plan with words"] * 4
    assert kinds(grown(Schema(), rows({"a": repeated}))) == {"a": CATEGORY}
    assert kinds(grown(Schema(), rows({"a": ["x y z", "a b c"]}))) == {"a": CATEGORY}


def test_a_column_of_another_kind_keeps_its_place() -> None:
    schema = Schema((Column("a", NUMBER), Column("b", TIME)))
    schema = schema.after([SetKind("a", CATEGORY), AddColumn("c", NUMBER), SetKind("a", NUMBER)])
    assert schema.dense == (0, 1, 2)


def test_at_most_256_columns_come_late() -> None:
    schema = grown(Schema(), rows({f"a{k}": [1] for k in range(300)}))
    schema = grown(schema, rows({f"b{k}": [1] for k in range(200)}))
    schema = grown(schema, rows({f"c{k}": [1] for k in range(200)}))
    assert len(schema.columns) == 300 + MAX_LATE
    assert schema.columns[-1] == Column("c55", NUMBER, late=True)


@pytest.mark.parametrize("policy", [ColumnPolicy.IGNORE, ColumnPolicy.REJECT])
def test_only_the_first_batch_adds_columns_unless_the_policy_is_add(policy: ColumnPolicy) -> None:
    schema = grown(Schema(new_columns=policy), rows({"a": [1]}))
    assert kinds(schema) == {"a": NUMBER}
    assert schema.changes_for(rows({"b": [1]})) == ()


def test_labels_grow_up_to_the_limit() -> None:
    schema = grown(Schema(labels=("stay",), max_classes=3), rows({"a": [1] * 3}, ["x", "y", "z"]))
    assert schema.labels == ("stay", "x", "y")


def test_labels_beyond_the_limit_are_other() -> None:
    start = Schema(labels=("stay",), new_labels=LabelPolicy.OTHER, max_classes=3)
    schema = grown(start, rows({"a": [1] * 3}, ["x", "y", "z"]))
    assert schema.labels == ("stay", "x", "other")
    sent = rows({"a": [1] * 4}, ["z", "x", "stay", "y"])
    assert schema.codes(sent).tolist() == [2, 1, 0, 2]


@given(st.permutations(["a", "b", "c", "d"]), st.lists(st.sampled_from("abcd"), min_size=1))
def test_declared_and_grown_labels_map_to_the_same_texts(order: list[str], seen: list[str]) -> None:
    found = rows({"x": [0] * len(seen)}, seen)
    for schema in (grown(Schema(labels=tuple(order)), found), grown(Schema(), found)):
        codes = schema.codes(found)
        assert [schema.labels[code] for code in codes] == seen


@pytest.mark.parametrize(
    "change", [AddColumn("a", None), SetKind("b", NUMBER), AddLabels(("stay",))]
)
def test_changes_of_another_schema_are_refused(change: AddColumn | SetKind | AddLabels) -> None:
    with pytest.raises(ValueError, match=r"the schema (has|lacks) it"):
        Schema((Column("a"),), ("stay",)).after([change])


def test_crosses_name_columns_and_parts_of_times() -> None:
    columns = (Column("plan", CATEGORY), Column("at", TIME), Column("age", NUMBER))
    columns += (Column("city", CATEGORY), Column("day", TIME, parts=(Part.WEEKDAY,)))
    singles = ["plan", "at:hour", "at:weekday", "city", "day:weekday"]

    def names(*crosses: tuple[str, str]) -> list[str]:
        pairs = Schema(columns, crosses=crosses).pairs.T
        return [f"{singles[a]} {singles[b]}" for a, b in pairs]

    assert names(("plan", "at:hour")) == ["plan at:hour"]
    assert names(("at", "city")) == ["at:hour city", "at:weekday city"]
    assert names(("*", "*"), ("plan", "city")) == ["plan city"]
    assert names(("plan", "age"), ("plan", "nothing"), ("plan", "age:hour")) == []


def test_all_pairs_are_those_of_64_categories() -> None:
    schema = Schema(tuple(Column(f"c{k}", CATEGORY) for k in range(70)), crosses=(("*", "*"),))
    assert schema.pairs.shape == (2, 64 * 63 // 2)


@given(schemas(), schemas())
def test_after_the_changes_to_a_declaration_nothing_is_left_to_change(
    made: tuple[Schema, Rows], other: tuple[Schema, Rows]
) -> None:
    schema, declared = made[0], other[0]
    found = schema.after(schema.changes_to(declared))
    assert found.changes_to(declared) == ()
    assert [*found.index][: len(schema.columns)] == [*schema.index]
    assert found.labels[: len(schema.labels)] == schema.labels
    assert found.dense[: schema.width] == schema.dense


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="'columns' is no policy"):
        Schema().with_policies({"columns": []})
    with pytest.raises(ValueError, match="no schema: max_classes"):
        Schema().with_policies({"max_classes": "many"})


@given(schemas(), many_rows)
def test_rows_that_are_taken_by_type_pass_the_check_and_change_nothing(
    drawn: tuple[Schema, Rows], found: Rows
) -> None:
    schema, own = drawn
    for rows_ in (own, found):
        [*chunks] = rows_.split()
        for part in chunks:
            [chunk] = part.chunks
            columns = dict(zip(chunk.columns.schema.names, chunk.columns.schema.types, strict=True))
            labels = [] if chunk.labels is None else chunk.labels.unique().to_pylist()
            if schema.takes(columns, labels):
                schema.check(part)
                assert schema.changes_for(part) == ()


def test_rows_are_taken_by_type_only_if_no_value_needs_a_look() -> None:
    schema = Schema((Column("age", Kind.NUMBER), Column("plan")), labels=("stay",))
    assert schema.takes({"age": pa.float64()}, ["stay"])
    assert not schema.takes({"age": pa.string()}, ["stay"])
    assert not schema.takes({"age": pa.float64()}, ["go"])
    assert not schema.takes({"age": pa.float64(), "plan": pa.string()}, ["stay"])
    assert not schema.takes({"age": pa.float64(), "city": pa.string()}, ["stay"])
