"""Labels of text are compared as text; none is merged, and none is split without a note."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.sources.labels import MAX_CLASSES, fraction, lookalikes, numbered

NUMBERS = st.from_regex(r"[+-]?[0-9]{1,30}(\.[0-9]{1,9})?(e[0-9]{1,3})?", fullmatch=True)
TEXTS = st.lists(st.one_of(NUMBERS, st.text(min_size=1)), min_size=2, unique=True)


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["0", "2", "1"], [0, 2, 1]),
        (["3", "1"], [3, 1]),
        (["1.0", "0.0"], [1, 0]),
        (["0", "99"], [0, 99]),
        ([*map(str, range(0, 3_000, 3))], [*range(0, 3_000, 3)]),
    ],
)
def test_whole_numbers_from_0_without_large_gaps_number_themselves(
    texts: list[str], numbers: list[int]
) -> None:
    found = numbered(texts)
    assert (found.numbers.tolist(), found.names) == (numbers, ())


@pytest.mark.parametrize(
    "names",
    [
        ["2019", "2020", "2021"],
        ["200", "404", "500"],
        ["9007199254740992", "9007199254740993"],
        ["-1", "+1"],
        ["-1", "1"],
        ["-1", "1", "1.0"],
        ["007", "7"],
        ["00", "01"],
        ["9", "70000", "1e12"],
        ["1", "1.0"],
        ["0.0", "1"],
        ["1", "1e99999"],
        ["12", "1_2", "3_4"],
        ["1", "１"],
        ["False", "True", "true"],
        ["0.5", "a"],
        ["apple", "banana"],
        ["10", "9", "a"],
        ["0", str(MAX_CLASSES)],
    ],
)
def test_other_labels_are_names_in_the_order_of_values_or_of_the_alphabet(
    names: list[str],
) -> None:
    found = numbered(names[::-1])
    assert found.names == tuple(names)
    assert found.numbers.tolist() == [*range(len(names))][::-1]


@given(TEXTS)
def test_two_labels_never_share_a_number(texts: list[str]) -> None:
    found = numbered(texts)
    assert len(set(found.numbers.tolist())) == len(texts)
    if found.names:
        assert [found.names[k] for k in found.numbers] == texts


@given(TEXTS)
def test_the_order_of_rows_does_not_change_the_numbers(texts: list[str]) -> None:
    found, turned = numbered(texts), numbered(texts[::-1])
    assert found.names == turned.names
    assert found.numbers.tolist() == turned.numbers.tolist()[::-1]


@pytest.mark.parametrize(
    ("texts", "first"),
    [
        (["1", "0.5"], "0.5"),
        (["1", "-2.5e-1"], "-2.5e-1"),
        (["1", "inf"], "inf"),
        (["-Infinity", "1.5"], "-Infinity"),
        (["1", "1.0", "1e3"], None),
        (["0.5", "high"], None),
        (["inf", "fin"], None),
        (["1_2", "0.5"], None),
    ],
)
def test_numbers_with_fractions_are_a_quantity(texts: list[str], first: str | None) -> None:
    assert fraction(texts) == first


@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        (["1", "1.0", "1e0", "+1", "01", "2"], [("+1", "01", "1", "1.0", "1e0")]),
        (["9007199254740992", "9007199254740993"], []),
        (["True", "true", "TRUE", "False"], [("TRUE", "True", "true")]),
        (["１", "1"], [("1", "１")]),
        (["a\u200bb", "ab"], [("ab", "a\u200bb")]),
        (["e\u0301", "\u00e9"], [("e\u0301", "\u00e9")]),
        (["New\u00a0York", "New York"], [("New York", "New\u00a0York")]),
        (["-0", "0", "0.00"], [("-0", "0", "0.00")]),
        (["100", "1e2", "1E+2"], [("100", "1E+2", "1e2")]),
        (["a", "b"], []),
    ],
)
def test_labels_that_look_alike_are_found(texts: list[str], groups: list[tuple[str, ...]]) -> None:
    assert lookalikes(texts) == groups
