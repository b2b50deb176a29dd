"""JSON and NDJSON are read strictly."""

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import json_batch
from streams.batch import InvalidBatchError, check
from streams.json_batch import MAX_LISTS, features_from_json, from_json, from_ndjson

BAD: list[tuple[str, str | None, int | None]] = [
    ("", None, None),
    ("[]", None, None),
    ("null", None, None),
    ("{", None, None),
    ('{"features": [[1]]}', "labels", None),
    ('{"labels": [1]}', "features", None),
    ('{"features": [[1]], "labels": [1], "lables": [1]}', "lables", None),
    ('{"features": 1, "labels": [1]}', "features", None),
    ('{"features": [1], "labels": [1]}', "features", 0),
    ('{"features": [[1], [1, 2]], "labels": [1, 1]}', "features", 1),
    ('{"features": [[1], [true]], "labels": [1, 1]}', "features", 1),
    ('{"features": [[1], [false]], "labels": [1, 1]}', "features", 1),
    (r'{"\u0066eat\u0075res": [[1], [true]], "labels": [1, 1]}', "features", 1),
    (r'{"\u0066eat\u0075res": [[1], [false]], "labels": [1, 1]}', "features", 1),
    ('{"features": [{}], "labels": [1]}', "features", 0),
    ('{"features": [[], ""], "labels": [1, 1]}', "features", 1),
    ('{"features": [["1"]], "labels": [1]}', "features", 0),
    ('{"features": [["nan"]], "labels": [1]}', "features", 0),
    ('{"features": [[null]], "labels": [1]}', "features", 0),
    ('{"features": [[[1]]], "labels": [1]}', "features", 0),
    ('{"features": [[NaN]], "labels": [1]}', "features", 0),
    ('{"labels": [1, 1], "features": [[1], [-Infinity]]}', "features", 1),
    ('{"features": [[1], [1, 1e999]], "labels": [1]}', "features", 1),
    ('{"labels": [NaN], "features": [[1]]}', "labels", 0),
    ('{"features": [[1], [2]], "labels": [0, 1e999]}', "labels", 1),
    ('{"features": [[1]], "labels": [0], "weight": NaN}', "weight", None),
    ("NaN", None, None),
    ('{"features": [[1e39]], "labels": [1]}', "features", 0),
    ('{"features": [[1], [-1e300]], "labels": [1, 1]}', "features", 1),
    ('{"features": [[1]], "labels": 1}', "labels", None),
    ('{"features": [[1]], "labels": [1.5]}', "labels", 0),
    ('{"features": [[1]], "labels": [1.0]}', "labels", 0),
    ('{"features": [[1], [1]], "labels": [1, true]}', "labels", 1),
    ('{"features": [[1]], "labels": ["1"]}', "labels", 0),
    ('{"features": [[1]], "labels": [18446744073709551615]}', "labels", 0),
]


@pytest.mark.parametrize(("text", "field", "index"), BAD)
def test_the_fault_is_named(text: str, field: str | None, index: int | None) -> None:
    with pytest.raises(InvalidBatchError) as caught:
        from_json(text.encode())
    assert (caught.value.field, caught.value.index) == (field, index)


def test_one_example_is_a_batch_of_one() -> None:
    one = from_json(b'{"label": 3, "features": [0.5, 1]}', width=2)
    many = from_json(b'{"features": [[0.5, 1]], "labels": [3]}', width=2)
    np.testing.assert_array_equal(one.features, many.features)
    np.testing.assert_array_equal(one.labels, many.labels)
    flat = features_from_json(b'{"features": [0.5, 1]}', width=2)
    np.testing.assert_array_equal(flat, many.features)


ONE: list[tuple[str, str | None, int | None]] = [
    ('{"features": [1, true], "label": 1}', "features", 0),
    ('{"features": [[1]], "label": 1}', "features", 0),
    ('{"features": [1, 2], "label": 1}', "features", 0),
    ('{"features": [1], "label": [1]}', "labels", 0),
    ('{"features": [1], "label": null}', "labels", 0),
    ('{"features": [1], "label": 1, "labels": [1]}', "label", None),
    ('{"features": 1, "label": 1}', "features", 0),
    ('{"label": 1}', "features", None),
]


@pytest.mark.parametrize(("text", "field", "index"), ONE)
def test_the_fault_of_one_example_is_named(text: str, field: str | None, index: int | None) -> None:
    with pytest.raises(InvalidBatchError) as caught:
        from_json(text.encode(), width=1)
    assert (caught.value.field, caught.value.index) == (field, index)


@pytest.mark.parametrize("text", ["[1, [2]]", "[1, true]", "[1, null]", '[1, "2"]', "[[1], 2]"])
def test_a_flat_list_of_features_holds_numbers_only(text: str) -> None:
    with pytest.raises(InvalidBatchError) as caught:
        features_from_json(f'{{"features": {text}}}'.encode(), width=2)
    assert (caught.value.field, caught.value.index) == ("features", 0)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("true", "a label must be an integer, got boolean True; send 1"),
        ("1.0", "a label must be an integer, got number 1.0; send 1"),
        ("1e0", "a label must be an integer, got number 1.0"),
        ("-0.0", "a label must be an integer, got number -0.0; send 0"),
        ("1.5", "a label must be an integer, got number 1.5; a service with FUNNEL_TASK=regress"),
        ('"1"', "a label must be an integer, got string 1; words are labels of rows: start a serv"),
        ("null", "a label must be an integer, got null None"),
        ("[1]", r"a label must be an integer, got list \[1\]"),
        ("-1", "label -1 is outside 0…1"),
        ("9007199254740993", "label 9007199254740993 is outside 0…1"),
        ("9223372036854775807", "label 9223372036854775807 is outside 0…1"),
        ("9223372036854775808", "label 9223372036854775808 does not fit int64"),
        ("18446744073709551616", "a label must be an integer, got number 1.8446744073709552e"),
    ],
)
def test_a_label_is_the_integer_that_is_written_or_refused(label: str, message: str) -> None:
    with pytest.raises(InvalidBatchError, match=message):
        check(from_json(f'{{"features": [[1]], "labels": [{label}]}}'.encode()), 1, 2)
    with pytest.raises(InvalidBatchError, match=message) as caught:
        check(from_ndjson(f'{{"features": [1], "label": {label}}}'.encode()), 1, 2)
    assert caught.value.index == 0


@pytest.mark.parametrize(
    "document",
    [
        '{"rows": [{"a": 1}], "labels": [0]}',
        '{"row": {"a": 1}, "label": 0}',
        '{"features": [{"a": 1}], "labels": [0]}',
        '{"features": [[null]], "labels": [0]}',
        '{"features": [["basic"]], "labels": [0]}',
        '{"features": [[1]], "labels": ["stay"]}',
    ],
)
def test_what_only_rows_can_hold_is_refused_with_how_to_send_rows(document: str) -> None:
    with pytest.raises(InvalidBatchError, match="FUNNEL_SCHEMA=auto for rows with names"):
        from_json(document.encode())


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "nan", "1e999"])
def test_a_number_that_is_not_finite_is_called_so(number: str) -> None:
    with pytest.raises(InvalidBatchError, match="must be finite"):
        from_json(b'{"features": [[%s]], "labels": [1]}' % number.encode())
    line = b'{"features": [1], "label": 1}\n'
    with pytest.raises(InvalidBatchError, match="must be finite") as caught:
        from_ndjson(line + line.replace(b"[1]", b"[%s]" % number.encode()))
    assert (caught.value.field, caught.value.index) == ("features", 1)
    with pytest.raises(InvalidBatchError, match="must be finite") as caught:
        from_ndjson(line + line.replace(b"1}", b"%s}" % number.encode()))
    assert (caught.value.field, caught.value.index) == ("label", 1)


def test_the_row_at_fault_is_the_one_that_the_model_cannot_take() -> None:
    raw = b'{"features": [[1, 2], [1, 2, 3]], "labels": [1, 1]}'
    for width, index in ((None, 1), (3, 0), (2, 1), (4, 0)):
        with pytest.raises(InvalidBatchError) as caught:
            from_json(raw, width)
        assert caught.value.index == index
    with pytest.raises(InvalidBatchError, match=r"has 1 features, expected 2 \(FUNNEL_F") as caught:
        from_json(b'{"features": [[1], [2]], "labels": [1, 1]}', 2)
    assert caught.value.index == 0


@pytest.mark.parametrize("opening", ["[", '{"features":', '{"features": ['])
def test_deep_json_is_refused_not_a_crash(opening: str) -> None:
    with pytest.raises(InvalidBatchError):
        from_json((opening * 100_000).encode())


@pytest.mark.parametrize("small", ["[]", "{}", "[[]]", '{"":0}', "[1]"])
def test_a_text_that_would_unfold_to_many_times_its_size_is_not_parsed(small: str) -> None:
    many = small + f",{small}" * MAX_LISTS
    for read, label in ((from_json, '"labels": []'), (from_ndjson, '"label": 1')):
        with pytest.raises(InvalidBatchError, match="lists and objects"):
            read(f'{{"features": [{many}], {label}}}'.encode())


def test_the_largest_number_of_examples_is_read() -> None:
    rows = MAX_LISTS - 2
    whole = orjson.dumps({"features": [[0.5]] * rows, "labels": [0] * rows})
    assert len(from_json(whole)) == rows
    with pytest.raises(InvalidBatchError, match="lists and objects"):
        from_json(whole.replace(b"[[", b"[[[", 1))
    line = b'{"features": [0.5], "label": 0}\n'
    assert len(from_ndjson(line * MAX_LISTS)) == MAX_LISTS
    with pytest.raises(InvalidBatchError, match="examples"):
        from_ndjson(line * (MAX_LISTS + 1))


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = st.integers(1, 4).flatmap(
    lambda d: st.lists(
        st.tuples(
            st.lists(
                st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=d, max_size=d
            ),
            st.integers(-(1 << 63), (1 << 63) - 1),
        ),
        min_size=1,
        max_size=5,
    )
)


@given(rows)
def test_json_and_ndjson_give_the_same_batch(examples: list[tuple[list[float], int]]) -> None:
    features, labels = [x for x, _ in examples], [y for _, y in examples]
    whole = from_json(json.dumps({"features": features, "labels": labels}).encode())
    lines = from_ndjson(
        b"\n\n".join(json.dumps({"features": x, "label": y}).encode() for x, y in examples)
    )
    np.testing.assert_array_equal(whole.features, np.array(features, np.float32))
    np.testing.assert_array_equal(whole.features, lines.features)
    np.testing.assert_array_equal(whole.labels, lines.labels)
    alone = features_from_json(json.dumps({"features": features}).encode())
    np.testing.assert_array_equal(alone, whole.features)


def plainly(rows: list[Any]) -> np.ndarray | int:
    """Read as the reader does, without its short cuts: float32, or the index of the fault."""
    for index, row in enumerate(rows):
        if type(row) is not list or len(row) != len(rows[0]):
            return index
        if any(type(number) not in (int, float) for number in row):
            return index
    features = np.array(rows, np.float64)
    for index, row in enumerate(features):
        if (np.abs(row) >= 2.0**128 - 2.0**103).any():  # rounds to infinity
            return index
    return features.astype(np.float32)


numbers = (
    st.floats(allow_nan=False, allow_infinity=False) | finite | st.integers(-(1 << 63), 1 << 64)
)
mistakes = st.sampled_from([True, False, None, "1", "", [], [1], {}, {"a": 1}, 1e39, 1 << 70])
mistaken_rows = st.sampled_from([[], 1, "ab", None, True, {}, {"a": 1, "b": 2}, [1, 2, 3, 4, 5]])


@st.composite
def nearly_right(draw: st.DrawFn) -> list[Any]:
    width = draw(st.integers(0, 4))
    rows: list[Any] = draw(
        st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=5)
    )
    for _ in range(draw(st.integers(0, 2))):
        row = draw(st.integers(0, len(rows) - 1))
        if draw(st.booleans()):
            rows[row] = draw(mistaken_rows)
        elif isinstance(rows[row], list) and rows[row]:
            rows[row][draw(st.integers(0, len(rows[row]) - 1))] = draw(mistakes)
    return rows


KEYS = ["features", r"\u0066eatures", r"feat\u0075res", r"\u0066eat\u0075res"]


@given(nearly_right(), st.sampled_from(KEYS), st.booleans())
def test_the_fast_reader_equals_the_plain_one(
    rows: list[Any], key: str, labels_first: bool
) -> None:
    fields = [f'"{key}": {json.dumps(rows)}', f'"labels": {[1] * len(rows)}']
    text = f"{{{', '.join(fields[::-1] if labels_first else fields)}}}"
    lines = "\n".join(f'{{"{key}": {json.dumps(row)}, "label": 1}}' for row in rows)
    expected = plainly(rows)
    for read, raw in ((from_json, text), (from_ndjson, lines)):
        if isinstance(expected, int):
            with pytest.raises(InvalidBatchError) as caught:
                read(raw.encode())
            assert (caught.value.field, caught.value.index) == ("features", expected)
        else:
            features = read(raw.encode()).features
            assert features.flags.writeable
            np.testing.assert_array_equal(features, expected, strict=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(json_values, json_values)
def test_no_json_gets_past_the_reader_but_a_batch(features: Any, labels: Any) -> None:
    raw = json.dumps({"features": features, "labels": labels}).encode()
    try:
        batch = from_json(raw)
    except InvalidBatchError:
        return
    assert batch.features.dtype == np.float32
    assert np.isfinite(batch.features).all()
    assert batch.labels.dtype == np.int64


def test_a_bad_line_is_named() -> None:
    with pytest.raises(InvalidBatchError) as caught:
        from_ndjson(b'{"features": [1], "label": 1}\n\n{"features": [1]}')
    assert (caught.value.field, caught.value.index) == ("label", 1)
    with pytest.raises(InvalidBatchError) as caught:
        from_ndjson(b'{"features": [1], "label": 1}\n{"features": [1, 2], "label": 1}')
    assert (caught.value.field, caught.value.index) == ("features", 1)
    with pytest.raises(InvalidBatchError) as caught:
        from_ndjson(b'{"features": [true], "label": 1}\n{"features": [1], "label": 1}')
    assert (caught.value.field, caught.value.index) == ("features", 0)


def test_an_example_of_another_width_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing a million surplus numbers would hold the interpreter's lock."""
    monkeypatch.setattr(json_batch, "Struct", None)
    with pytest.raises(InvalidBatchError, match=r"has 4 features, expected 3 \(FUNNEL_FEATURES\)"):
        from_json(b'{"features": [[1, 2, 3, 4]], "labels": [0]}', width=3)


def test_weights_are_read_where_labels_are() -> None:
    many = from_json(b'{"features": [[1], [2]], "labels": [0, 1], "weights": [0.5, 2]}')
    one = from_json(b'{"features": [1], "label": 0, "weight": 3}')
    lines = from_ndjson(
        b'{"features": [1], "label": 0}\n{"features": [2], "label": 1, "weight": 0}\n'
    )
    found = [None if b.weights is None else b.weights.tolist() for b in (many, one, lines)]
    assert found == [[0.5, 2.0], [3.0], [1.0, 0.0]]
    assert from_json(b'{"features": [[1]], "labels": [0]}').weights is None
    assert from_ndjson(b'{"features": [1], "label": 0}').weights is None


BAD_WEIGHTS: list[tuple[str, int | None]] = [
    ("[1]", None),
    ("[1, 2, 3]", None),
    ("[[1], [2]]", 0),
    ("[1, null]", 1),
    ("[1, true]", 1),
    ('[1, "2"]', 1),
    ("[1, -1e-9]", 1),
    ("[1, 1000001]", 1),
    ("[1, 1e300]", 1),
    ("[1, 18446744073709551616]", 1),
    ("[1, NaN]", 1),
    ("null", None),
    ("2", None),
]


@pytest.mark.parametrize(("weights", "index"), BAD_WEIGHTS)
def test_a_weight_that_is_none_is_named(weights: str, index: int | None) -> None:
    text = f'{{"features": [[1], [2]], "labels": [0, 1], "weights": {weights}}}'
    with pytest.raises(InvalidBatchError) as caught:
        from_json(text.encode())
    assert (caught.value.field, caught.value.index) == ("weights", index)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b'{"features": [[1]], "features": [[2]], "labels": [0]}', "features"),
        (b'{"features": [[1]], "labels": [0], "labels" : [1]}', "labels"),
        (b'{"features": [[1]], "labels": [0], "weights": [1], "weights": [2]}', "weights"),
        (b'{"features": [1], "label": 0, "label": 1}', "label"),
        (b'{"\\u0066eatures": [[1]], "features": [[2]], "labels": [0]}', "features"),
    ],
)
def test_a_key_that_comes_twice_is_refused_by_name(raw: bytes, field: str) -> None:
    with pytest.raises(InvalidBatchError, match=f"'{field}' occurs twice") as caught:
        from_json(raw)
    assert caught.value.field == field


def test_a_key_that_comes_twice_is_refused_in_predictions_and_in_lines() -> None:
    with pytest.raises(InvalidBatchError, match="'features' occurs twice"):
        features_from_json(b'{"features": [[1]], "features": [[2]]}')
    good, bad = b'{"features": [1], "label": 0}\n', b'{"features": [1], "label": 0, "label": 1}'
    with pytest.raises(InvalidBatchError, match="'label' occurs twice") as caught:
        from_ndjson(good + bad)
    assert caught.value.index == 1


def test_a_key_with_escapes_is_taken() -> None:
    assert len(from_json(b'{"\\u0066eatures": [[1]], "labels": [0]}')) == 1
