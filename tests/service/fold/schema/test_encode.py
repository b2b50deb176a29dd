"""Rows become the same numbers and keys whatever their chunks, columns' order and process."""

import math
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fold.schema.changes import SetKind
from service.fold.schema.encode import Encoded, encode, encode_each
from service.fold.schema.keys import key_of, missing_key, prefix_of, scramble
from service.fold.schema.kinds import Kind, LabelPolicy, Part
from service.fold.schema.schema import Column, Schema
from streams.rows.names import canonical
from streams.rows.rows import Chunk, Rows, join, merged
from tests.service.fold.schema.some_rows import (
    assert_equal,
    chunk,
    image_segments,
    many_rows,
    rows,
    schemas,
)

NUMBER, CATEGORY, TIME, TEXT, BOOL = (
    Kind.NUMBER, Kind.CATEGORY, Kind.TIME, Kind.TEXT, Kind.BOOL,
)  # fmt: skip
GOLDEN = [
    10084538279638423839, 3459297275054202262, 9826432490350538017, 8466542665648771816,
    9119813834218421755, 4473363901824425508, 521643027625311170, 9633905690024901934,
    15127986737770035394,
]  # fmt: skip
"""Keys of one row: `xxhash.xxh3_64_intdigest` of the bytes that `service.fold.schema.keys` names,
and for the cross its arithmetic in Python's integers."""
ROOT = Path(__file__).parents[4]


def joined(parts: list[Encoded], sizes: list[int]) -> Encoded:
    starts = np.cumsum([0, *sizes[:-1]])
    return Encoded(
        np.concatenate([part.dense for part in parts]),
        np.concatenate(
            [part.rows + start for part, start in zip(parts, starts, strict=True)]
        ).astype(np.int32),
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.columns for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.sum([part.missing for part in parts], axis=0, dtype=np.int64),
        sum(part.ignored for part in parts),
    )


def of_row(found: Encoded, row: int) -> dict[int, float]:
    at = found.rows == row
    return dict(zip(found.keys[at].tolist(), found.values[at].tolist(), strict=True))


def key(*names: str) -> int:
    return key_of(prefix_of(*names[:-1]), names[-1].encode())


@given(schemas(), many_rows)
def test_rows_encode_alike_alone_and_together(made: tuple[Schema, Rows], other: Rows) -> None:
    schema, found = made
    together = encode(schema, join([found, other]))
    parts = [encode(schema, found), encode(schema, other)]
    assert_equal(together, joined(parts, [len(found), len(other)]))


@given(schemas(), st.lists(many_rows, max_size=3))
def test_batches_encode_together_as_each_does_by_itself(
    made: tuple[Schema, Rows], others: list[Rows]
) -> None:
    schema, found = made
    for batch, encoded in zip(
        batches := [found, *others], encode_each(schema, batches), strict=True
    ):
        assert_equal(encoded, encode(schema, batch))


@given(schemas())
def test_every_row_encodes_as_it_does_alone(made: tuple[Schema, Rows]) -> None:
    schema, found = made
    alone = [encode(schema, found.part(k, k + 1)) for k in range(len(found))]
    assert_equal(encode(schema, found), joined(alone, [1] * len(found)))


@given(schemas(), st.randoms(use_true_random=False))
def test_the_order_of_columns_does_not_matter(made: tuple[Schema, Rows], random: Random) -> None:
    schema, found = made
    shuffled = []
    for one in found.chunks:
        names = random.sample(one.columns.schema.names, one.columns.num_columns)
        shuffled.append(Chunk(one.columns.select(names), one.labels))
    assert_equal(encode(schema, Rows(tuple(shuffled))), encode(schema, found))


def test_chunks_that_alternate_between_two_sets_of_columns_keep_their_values() -> None:
    schema = Schema((Column("plan", CATEGORY), Column("at", TIME), Column("paid", BOOL)))
    first = chunk({"plan": ["a"], "at": ["2026-01-01"], "paid": [True]})
    second = chunk({"at": ["2026-01-02"], "plan": ["b"], "paid": [False], "new": [1]})
    third = chunk({"plan": ["c"], "at": ["2026-01-03"], "paid": [True]})
    one = Rows((first, second, third))
    alone = [encode(schema, one.part(k, k + 1)) for k in range(3)]
    assert_equal(encode(schema, one), joined(alone, [1] * 3))


@given(schemas())
def test_keys_are_sorted_by_row_and_numbers_are_finite_or_missing(
    made: tuple[Schema, Rows],
) -> None:
    schema, found = made
    encoded = encode(schema, found)
    assert (np.diff(encoded.rows) >= 0).all()
    assert not np.isinf(encoded.dense).any()
    assert encoded.dense.shape == (len(found), schema.width)
    assert ((encoded.missing >= 0) & (encoded.missing <= len(found))).all()


@given(schemas())
def test_every_key_tells_its_column_and_a_cross_has_none(made: tuple[Schema, Rows]) -> None:
    schema, found = made
    encoded = encode(schema, found)
    for index, column in enumerate(schema.columns):
        own, alone = encoded.columns == index, encode(Schema(columns=(column,)), found)
        assert encoded.rows[own].tolist() == alone.rows.tolist()
        assert encoded.keys[own].tolist() == alone.keys.tolist()
    assert (encoded.columns == -1).sum() == len(found) * schema.pairs.shape[1]


def expected(
    schema: Schema, values: dict[str, object]
) -> tuple[dict[str, float], dict[int, float]]:
    """Return the numbers and the keys of one row, by the definitions and without arrays."""
    dense: dict[str, float] = {}
    single: list[tuple[str, int]] = []
    more: dict[int, float] = {}
    for column in schema.columns:
        name, value = column.name, values.get(column.name)
        if isinstance(value, datetime):
            text = value.isoformat().replace("+00:00", "Z")
        else:
            text = None if value is None else canonical(value)
        if column.kind is NUMBER:
            try:
                dense[name] = float(text if text is not None else math.nan)
            except ValueError:
                dense[name] = {"true": 1.0, "false": 0.0}.get(text, math.nan)
            if isinstance(value, str) and text in ("true", "false"):
                dense[name] = math.nan
            if math.isnan(dense[name]):
                more[key(name, "missing")] = 1.0
        elif column.kind is CATEGORY:
            single.append(
                (name, key(name, "missing") if text is None else key(name, "category", text))
            )
        elif column.kind is BOOL:
            truth = {"true": "true", "1": "true", "false": "false", "0": "false"}.get(text or "")
            single.append((name, key(name, "bool", truth) if truth else key(name, "missing")))
        elif column.kind is TIME:
            at = value if isinstance(value, datetime) else None
            if isinstance(value, str) and len(value) == 10:
                at = datetime.combine(date.fromisoformat(value), datetime.min.time(), UTC)
            dense[name] = (
                (at - datetime(2020, 1, 1, tzinfo=UTC)).total_seconds() / 86_400 if at else math.nan
            )
            for part in column.parts:
                number = at and {"hour": at.hour, "weekday": at.weekday()}[part]
                single.append(
                    (
                        f"{name}:{part}",
                        key(name, part, "missing" if number is None else str(number)),
                    )
                )
        elif column.kind is TEXT and text is None:
            more[key(name, "missing")] = 1.0
    keys = dict.fromkeys((k for _, k in single), 1.0)
    for one, two in schema.pairs.T.tolist():
        first, second = (np.array([single[k][1]], np.uint64) for k in (one, two))
        cross = scramble(scramble(first) + second)
        keys[int(cross[0])] = 1.0
    return dense, keys | more


WORDS = st.sampled_from(["basic", "pro", "3.5", "7", "2026-01-02", "ü"])
ROW = st.fixed_dictionaries(
    {},
    optional={
        "age": st.integers(-1000, 1000) | st.floats(-1e6, 1e6) | WORDS | st.none() | st.booleans(),
        "plan": st.integers(0, 3) | WORDS | st.none() | st.booleans() | st.just(2.5),
        "at": st.datetimes(
            datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)
        ) | WORDS,
        "paid": st.booleans() | st.integers(0, 2) | WORDS | st.none(),
        "city": WORDS | st.none(),
    },
)  # fmt: skip
SCHEMA = Schema(
    (
        Column("paid", BOOL), Column("age", NUMBER), Column("plan", CATEGORY), Column("at", TIME),
        Column("city", CATEGORY), Column("note", TEXT),
    ),
    crosses=(("*", "*"), ("plan", "at:hour"), ("paid", "city")),
)  # fmt: skip


@given(st.lists(ROW, min_size=1, max_size=6))
def test_the_encoding_is_what_its_definitions_say(sent: list[dict[str, object]]) -> None:
    chunks = [
        chunk({name: [value] for name, value in row.items()} or {"nothing": [None]}) for row in sent
    ]
    encoded = encode(SCHEMA, Rows(tuple(chunks)))
    for k, row in enumerate(sent):
        dense, keys = expected(SCHEMA, row)
        assert of_row(encoded, k) == keys
        np.testing.assert_array_equal(encoded.dense[k], np.float32([dense["age"], dense["at"]]))


def test_keys_are_the_same_in_every_process() -> None:
    found = rows(
        {"plan": ["basic"], "at": ["2026-01-02T13:00Z"], "paid": [True], "note": ["Late fee"]}
    )
    schema = Schema(
        (Column("plan", CATEGORY), Column("at", TIME), Column("paid", BOOL), Column("note", TEXT),
         Column("age", NUMBER)),
        crosses=(("plan", "paid"),),
    )  # fmt: skip
    assert encode(schema, found).keys.tolist() == GOLDEN
    program = (
        "from tests.service.fold.schema.some_rows import rows\n"
        "from service.fold.schema.schema import Schema\n"
        "from service.fold.schema.encode import encode\n"
        "found = rows({'a': ['x', 'y'], 'b': ['one two three four', 'five six seven eight']})\n"
        "schema = Schema(crosses=(('*', '*'),))\n"
        "schema = schema.after(schema.changes_for(found))\n"
        "print(schema, encode(schema, found).keys.tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_5_and_5_0_and_the_text_5_are_one_category() -> None:
    found = Rows(tuple(chunk({"a": [value]}) for value in (5, 5.0, "5")))
    keys = encode(Schema((Column("a", CATEGORY),)), found).keys
    assert set(keys.tolist()) == {key("a", "category", "5")}


def test_numeric_texts_and_truth_values_are_numbers() -> None:
    found = Rows(tuple(chunk({"a": [value]}) for value in ("3.5", True, 7, "old", None)))
    encoded = encode(Schema((Column("a", NUMBER),)), found)
    np.testing.assert_array_equal(encoded.dense[:, 0], np.float32([3.5, 1, 7, np.nan, np.nan]))
    assert encoded.rows.tolist() == [3, 4]
    assert set(encoded.keys.tolist()) == {int(missing_key("a"))}
    assert encoded.missing.tolist() == [2]


def test_huge_numbers_stay_finite() -> None:
    dense = encode(Schema((Column("a", NUMBER),)), rows({"a": [1e300, -1e300, "1e39"][:2]})).dense
    assert dense[:, 0].tolist() == [float(np.finfo("f4").max), float(np.finfo("f4").min)]


def test_values_of_a_wrong_kind_are_missing_and_the_row_is_still_learned() -> None:
    found = Rows((chunk({"age": [31, 32], "at": [True, True]}, ["stay", "churn"]),
                  chunk({"age": ["old"], "at": ["2026-01-02"]}, ["stay"])))  # fmt: skip
    schema = Schema((Column("age", NUMBER), Column("at", TIME)), ("churn", "stay"))
    encoded = encode(schema, found)
    assert encoded.missing.tolist() == [1, 2]
    assert encoded.labels.tolist() == [1, 0, 1]


def test_words_of_a_row_have_the_norm_1() -> None:
    texts = ["late fee late", "fee", "", None, "word " * 1_000, " ".join(map(str, range(1_000)))]
    schema = Schema((Column("a", TEXT),))
    encoded = encode(schema, rows({"a": texts}))
    norms = np.bincount(encoded.rows, encoded.values.astype(float) ** 2, len(texts))
    np.testing.assert_allclose(norms, [1, 1, 0, 1, 1, 1], rtol=1e-6)
    late = {key("a", "word", "late"), key("a", "word", "fee"), key("a", "pair", "late fee"),
            key("a", "pair", "fee late")}  # fmt: skip
    assert of_row(encoded, 0).keys() == late
    assert of_row(encoded, 3) == {key("a", "missing"): 1.0}
    assert encoded.missing.tolist() == [1]
    assert (encoded.rows == 5).sum() == 511


def test_columns_that_the_schema_lacks_are_counted() -> None:
    encoded = encode(Schema((Column("a", NUMBER),)), rows({"a": [1, 2], "b": [3, None]}))
    assert encoded.ignored == 1


def test_rows_without_labels_and_labels_without_room_have_none() -> None:
    found = Rows((chunk({"a": [1]}), chunk({"a": [1, 2]}, ["stay", "gone"])))
    schema = Schema((Column("a", NUMBER),), ("stay",), new_labels=LabelPolicy.REJECT)
    assert encode(schema, found).labels.tolist() == [-1, 0, -1]


@pytest.mark.parametrize("found", [Rows(()), rows({"a": [1]}, ["x"]).part(0, 0)])
def test_no_rows_have_an_encoding_too(found: Rows) -> None:
    encoded = encode(SCHEMA, found)
    assert (encoded.dense.shape, encoded.keys.shape) == ((0, 2), (0,))


def test_a_million_categories_have_a_million_keys() -> None:
    n = 1_000_000
    values = pa.array(np.arange(n)).cast(pa.string())
    found = Rows((Chunk(pa.RecordBatch.from_pydict({"a": values})),))
    schema = Schema().after(Schema().changes_for(found))
    assert schema.columns == (Column("a", CATEGORY),)
    encoded = encode(schema, found)
    assert len(np.unique(encoded.keys)) == n
    assert encoded.keys[123_456] == key("a", "category", "123456")


def test_numbers_of_a_real_stream_are_its_numbers() -> None:
    found = image_segments()
    schema = Schema().after(Schema().changes_for(found))
    encoded = encode(schema, found)
    columns = found.chunks[0].columns.columns
    np.testing.assert_array_equal(encoded.dense, np.float32([c.to_numpy() for c in columns]).T)
    assert [schema.labels[k] for k in encoded.labels] == found.chunks[0].labels.to_pylist()
    assert len(encoded.keys) == 0
    assert encoded.dense.shape == (2_310, 18)


def test_a_retyped_column_leaves_its_place_empty() -> None:
    schema = Schema((Column("a", NUMBER), Column("b", NUMBER))).after([SetKind("a", CATEGORY)])
    encoded = encode(schema, rows({"a": [1], "b": [2]}))
    np.testing.assert_array_equal(encoded.dense, np.float32([[np.nan, 2]]))
    assert encoded.keys.tolist() == [key("a", "category", "1")]


def test_a_time_has_only_the_parts_of_its_column() -> None:
    schema = Schema((Column("at", TIME, parts=(Part.WEEKDAY,)),))
    encoded = encode(schema, rows({"at": ["2026-11-28T15:31:18Z", None]}))
    assert encoded.keys.tolist() == [key("at", "weekday", "5"), key("at", "weekday", "missing")]


@given(schemas(), st.integers(1, 3))
def test_rows_of_many_requests_in_one_entry_have_the_bits_of_one_entry_each(
    drawn: tuple[Schema, Rows], size: int
) -> None:
    schema, found = drawn
    apart = join([found.part(k, k + size) for k in range(0, len(found), size)])
    assert_equal(encode(schema, merged(apart)), encode(schema, apart))
