"""Features of rows by column: distinct texts, their keys, and the rows that have them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from service.fold.schema.cells import Cells, Indices
from service.fold.schema.keys import Keys, key_of, keys_of, missing_key, prefix_of, scramble
from service.fold.schema.kinds import Kind, Part
from service.fold.schema.schema import Column, Schema
from service.fold.schema.tokens import tokens
from service.fold.schema.values import DAY, distinct, texts, times, truths

HOUR = DAY // 24
THURSDAY = 3
"""Weekday of 1970-01-01, from Monday."""
RANGE = {Part.HOUR: [b"%d" % k for k in range(24)], Part.WEEKDAY: [b"%d" % k for k in range(7)]}


@dataclass(frozen=True, eq=False)
class Group:
    """Values of a feature: k distinct texts, and which of them m rows have."""

    texts: list[bytes]
    codes: npt.NDArray[np.integer]
    """[m], indices into ``texts``."""
    rows: Indices
    """int64 [m], in any order: chunks of different columns are read one kind after another."""


@dataclass(frozen=True, eq=False)
class Feature:
    """A feature of which every row has one value, or none."""

    column: str
    tag: Kind | Part
    """The name in the bytes of its keys, after that of the column."""
    groups: tuple[Group, ...]

    @property
    def name(self) -> str:
        """Its readable name: ``plan``, or ``at:hour`` for a part of a time."""
        return f"{self.column}:{self.tag}" if isinstance(self.tag, Part) else self.column

    def present(self) -> int:
        """Return the number of rows that have a value."""
        return sum(len(group.rows) for group in self.groups)

    def keys(self, n: int) -> Keys:
        """Return the key of each of n rows, uint64 [n]."""
        prefix = prefix_of(self.column, self.tag)
        if len(self.groups) == 1 and np.array_equal(self.groups[0].rows, np.arange(n)):
            [group] = self.groups
            whole: Keys = keys_of(prefix, group.texts)[group.codes]
            return whole
        found = np.full(n, self._missing(), np.uint64)
        for group in self.groups:
            found[group.rows] = keys_of(prefix, group.texts)[group.codes]
        return found

    def names(self) -> Iterator[tuple[int, str]]:
        """Yield the key and the readable name of a missing value, and of each distinct value."""
        prefix = prefix_of(self.column, self.tag)
        yield int(self._missing()), f"{self.name} is missing"
        for group in self.groups:
            for key, text in zip(keys_of(prefix, group.texts).tolist(), group.texts, strict=True):
                yield key, f"{self.name}={text.decode()}"

    def _missing(self) -> np.uint64:
        return missing_key(self.column, *([self.tag] if isinstance(self.tag, Part) else []))


@dataclass(frozen=True, eq=False)
class Sparse:
    """Keys with their rows, any number of them in a row."""

    rows: Indices
    """int64 [m]."""
    keys: Keys
    """uint64 [m]."""
    values: npt.NDArray[np.float32]
    """float32 [m]."""


NOTHING = Sparse(np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.float32))


def joined(parts: Sequence[Sparse]) -> Sparse:
    """Return the keys of all parts, one part after another."""
    parts = [NOTHING, *parts]
    return Sparse(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def categories(column: str, found: Sequence[Cells]) -> Feature:
    """Return the feature of a CATEGORY column; no value has a wrong kind."""
    groups = []
    for cells in found:
        unique, codes = distinct(cells.values)
        groups.append(Group(texts(unique), codes, cells.rows))
    return Feature(column, Kind.CATEGORY, tuple(groups))


def bools(column: str, found: Sequence[Cells]) -> Feature:
    """Return the feature of a BOOL column; values of a wrong kind are missing."""
    groups = []
    for cells in found:
        values, right = truths(cells)
        groups.append(Group([b"false", b"true"], values[right].astype(np.int64), cells.rows[right]))
    return Feature(column, Kind.BOOL, tuple(groups))


def moments(found: Sequence[Cells]) -> tuple[Indices, Indices]:
    """Return the times of a TIME column; values of a wrong kind are missing.

    Returns:
        int64 [m], the rows that have a time; int64 [m], microseconds since 1970-01-01 UTC.
    """
    rows, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for cells in found:
        parsed, right = times(cells)
        rows.append(cells.rows[right])
        values.append(parsed[right])
    return np.concatenate(rows), np.concatenate(values)


def parts(column: Column, rows: Indices, microseconds: Indices) -> Iterator[Feature]:
    """Yield the features of a TIME column, one for each of its parts."""
    for part in column.parts:
        codes = (
            microseconds // HOUR % 24 if part is Part.HOUR else (microseconds // DAY + THURSDAY) % 7
        )
        yield Feature(column.name, part, (Group(RANGE[part], codes, rows),))


def words(column: str, found: Sequence[Cells]) -> tuple[Sparse, dict[str, int]]:
    """Return the words and pairs of a TEXT column; no value has a wrong kind.

    The cost is linear in the tokens of distinct texts, and in those of all rows.

    Returns:
        The tokens of each row, of the value 1/√(its distinct tokens), so that a row has the norm 1;
        and the key of each distinct token, a word or a pair with a space in it.
    """
    one, two = prefix_of(column, "word"), prefix_of(column, "pair")
    known: dict[str, int] = {}
    parts: list[Sparse] = []
    for cells in found:
        unique, codes = distinct(cells.values)
        bags = [tokens(text.decode()) for text in texts(unique)]
        fresh = [token for token in dict.fromkeys(chain(*bags)) if token not in known]
        for token in fresh:
            known[token] = key_of(two if " " in token else one, token.encode())
        flat = np.array([known[token] for token in chain(*bags)], np.uint64)
        lengths = np.array(list(map(len, bags)), np.int64)
        starts, counts = (lengths.cumsum() - lengths)[codes], lengths[codes]
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        norm = (1 / np.sqrt(np.maximum(counts, 1))).astype(np.float32)
        parts.append(
            Sparse(
                np.repeat(cells.rows, counts),
                flat[np.repeat(starts, counts) + within],
                np.repeat(norm, counts),
            )
        )
    return joined(parts), known


def crosses(schema: Schema, keys: Keys) -> Keys:
    """Return the keys of all crosses in each of n rows, uint64 [p, n].

    Args:
        schema: has p crosses of f features of one value.
        keys: uint64 [f, n], the keys of these features.
    """
    first, second = schema.pairs
    return scramble(scramble(keys)[first] + keys[second])
