"""Rows are numbered when their keys first come, and collisions are counted exactly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.pool.tables.index import KeyIndex, Keys

KEYS = st.lists(st.integers(0, 2**64 - 1), max_size=60)
STREAMS = st.lists(KEYS, max_size=6)
FEW = st.lists(st.lists(st.integers(0, 40), max_size=60), max_size=6)
"""Keys that come again and share slots."""


def as_keys(values: list[int]) -> Keys:
    return np.array(values, dtype=np.uint64)


class Twin:
    """The same with a dictionary, one key at a time."""

    def __init__(self, bits: int) -> None:
        self.bits, self.rows, self.owners = bits, {}, []
        self.collided = 0

    def slot(self, key: int) -> int:
        return (key * 0x9E3779B97F4A7C15) % 2**64 >> (64 - self.bits)

    def admit(self, keys: list[int]) -> list[int]:
        for key in sorted(keys):
            if self.slot(key) not in self.rows:
                self.rows[self.slot(key)] = len(self.owners)
                self.owners.append(key)
        rows = [self.rows[self.slot(key)] for key in keys]
        self.collided += sum(self.owners[row] != key for row, key in zip(rows, keys, strict=True))
        return rows


@settings(deadline=None)
@given(st.one_of(STREAMS, FEW), st.integers(1, 12))
def test_rows_and_collisions_are_those_of_a_dictionary(stream: list[list[int]], bits: int) -> None:
    index, twin = KeyIndex(bits), Twin(bits)
    for keys in stream:
        known = len(twin.owners)
        assert index.admit(as_keys(keys)).tolist() == twin.admit(keys)
        assert index.first.tolist() == [keys.index(owner) for owner in twin.owners[known:]]
        assert index.keys.tolist() == twin.owners
        assert index.find(as_keys(keys)).tolist() == [twin.rows[twin.slot(k)] for k in keys]
    assert index.used == len(twin.owners)
    assert (index.visits, index.collided) == (sum(map(len, stream)), twin.collided)
    assert index.collision_ratio == twin.collided / max(index.visits, 1)


@settings(deadline=None)
@given(st.one_of(STREAMS, FEW), KEYS)
def test_finding_changes_nothing(stream: list[list[int]], asked: list[int]) -> None:
    index, other = KeyIndex(8), KeyIndex(8)
    for keys in stream:
        index.admit(as_keys(keys))
        other.admit(as_keys(keys))
        index.find(as_keys(asked))
        assert index.keys.tolist() == other.keys.tolist()
        assert (index.visits, index.collided) == (other.visits, other.collided)


@settings(deadline=None)
@given(STREAMS, KEYS, st.integers(1, 12))
def test_a_restored_index_goes_on_as_the_first(
    stream: list[list[int]], more: list[int], bits: int
) -> None:
    index, restored = KeyIndex(bits), KeyIndex(bits)
    restored.admit(as_keys(more))
    for keys in stream:
        rows, visits = np.unique(index.admit(as_keys(keys)), return_counts=True)
        index.count(rows, visits)
    restored.restore(index.keys.copy(), index.row_visits, index.visits, index.collided)
    assert restored.admit(as_keys(more)).tolist() == index.admit(as_keys(more)).tolist()
    assert restored.keys.tolist() == index.keys.tolist()
    assert (restored.visits, restored.collided) == (index.visits, index.collided)
    assert restored.row_visits.tolist() == index.row_visits.tolist()


def test_keys_in_a_row_spread_over_the_slots() -> None:
    index = KeyIndex(20)
    index.admit(np.arange(200_000, dtype=np.uint64))
    assert index.used > 190_000


@pytest.mark.parametrize("bits", [0, 31])
def test_a_number_of_slots_that_makes_no_table_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits must be from 1 to 30"):
        KeyIndex(bits)
