"""The schema: the names and kinds of columns, the labels, and how both may grow."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import orjson
import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter, ValidationError

from service.fold.schema.cells import Indices, cells_of, label_numbers, labels_of
from service.fold.schema.changes import (
    AddColumn,
    AddLabels,
    Change,
    SetKind,
    SetParts,
    SetPolicies,
)
from service.fold.schema.inference import infer
from service.fold.schema.kinds import ColumnPolicy, Kind, LabelPolicy, Part
from service.fold.schema.refusals import (
    check_cells,
    check_labels,
    check_numeric_labels,
    fits,
    unknown_column,
)
from streams.rows.rows import Rows

DENSE = (Kind.NUMBER, Kind.TIME)
"""Kinds that have a dense place."""
MAX_LATE = 256
"""Columns that may be added after the declared ones, or after those of the first batch."""
ALL = "*"
"""The cross (ALL, ALL) stands for all pairs of category columns."""
MAX_CROSSED = 64
"""Category columns that ALL crosses, the first ones."""
POLICIES = ("crosses", "label", "new_columns", "new_labels", "max_classes", "max_columns")
"""Fields of a schema that an operator may change."""
NONE = np.empty(0, np.int64)
MOST_FORMS = 64
"""Orders of columns that are remembered; clients send the same again and again."""
OTHER = "other"
"""The label of all labels beyond the limit, under the policy of that name."""


@dataclass(frozen=True)
class Column:
    """A column of named rows."""

    name: str
    kind: Kind | None = None
    """None is undecided: no value was seen yet."""
    late: bool = False
    """True if it came after the declared columns, or after those of the first batch."""
    parts: tuple[Part, ...] = tuple(Part)
    """The parts of a TIME column that are categories."""


@dataclass(frozen=True)
class Single:
    """A feature of which every row has exactly one value: a category, a bool, a part of a time."""

    column: int
    part: Part | None = None


@dataclass(frozen=True)
class Schema:
    """All that the encoding of rows depends on; columns, labels and places never move.

    Raises:
        ValueError: two columns have one name, or two labels one text.
    """

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    columns: tuple[Column, ...] = ()
    labels: tuple[str, ...] = ()
    """Canonical texts; declared ones first, then in order of first appearance."""
    crosses: tuple[tuple[str, str], ...] = ()
    """Pairs of columns, or of ``column:part`` for a part of a time. A TIME column stands for all
    its parts. Pairs with a column that is unknown, NUMBER or TEXT have no features."""
    label: str = "label"
    """Name of the column of labels in CSV and Arrow."""
    new_columns: ColumnPolicy = ColumnPolicy.ADD
    """Without columns, those of the first batch are added under every policy."""
    new_labels: LabelPolicy = LabelPolicy.GROW
    """`GROW` and `OTHER` add labels up to ``max_classes``; beyond that `GROW` refuses them, and
    `OTHER` takes them as the label OTHER, the last of ``max_classes``. `REJECT` adds none."""
    max_classes: int = 1_000
    max_columns: int = 4_096
    """At most MAX_LATE of them come late. Columns beyond either limit are ignored."""
    version: int = 0
    """Number of changes."""
    dense: tuple[int, ...] = ()
    """Indices of the columns that have a dense place, by place, in the order in which they became
    NUMBER or TIME. A column that gets another kind keeps its place, which is NaN from then on."""

    numeric_labels: bool = False
    """True if labels are numbers to predict, of which there is no list."""

    def __post_init__(self) -> None:
        if len(self.index) < len(self.columns) or len(self.label_index) < len(self.labels):
            raise ValueError("a name of a column or label is there twice")
        known = set(self.dense)
        new = [k for k, c in enumerate(self.columns) if c.kind in DENSE and k not in known]
        object.__setattr__(self, "dense", (*self.dense, *new))

    @property
    def width(self) -> int:
        """Number of dense places."""
        return len(self.dense)

    @cached_property
    def index(self) -> dict[str, int]:
        """Index of each column by name."""
        return {column.name: k for k, column in enumerate(self.columns)}

    @cached_property
    def label_index(self) -> dict[str, int]:
        """Index of each label by its canonical text."""
        return {name: k for k, name in enumerate(self.labels)}

    @cached_property
    def place(self) -> dict[int, int]:
        """Dense place of each column that has one, by the index of the column."""
        return {column: place for place, column in enumerate(self.dense)}

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Dense place of each column of numbers, by name."""
        return {
            column.name: self.place[k]
            for k, column in enumerate(self.columns)
            if column.kind is Kind.NUMBER
        }

    @cached_property
    def singles(self) -> tuple[Single, ...]:
        """Features of which every row has one value, in the order of the columns."""
        found: list[Single] = []
        for k, column in enumerate(self.columns):
            if column.kind in (Kind.CATEGORY, Kind.BOOL):
                found.append(Single(k))
            elif column.kind is Kind.TIME:
                found.extend(Single(k, part) for part in column.parts)
        return tuple(found)

    @cached_property
    def pairs(self) -> Indices:
        """Crosses that have features, int64 [2, p], as indices into ``singles``."""
        found: dict[tuple[int, int], None] = {}
        for one, two in self.crosses:
            if one == ALL:
                categories = [
                    k
                    for k, single in enumerate(self.singles)
                    if self.columns[single.column].kind is Kind.CATEGORY
                ]
                found.update(dict.fromkeys(combinations(categories[:MAX_CROSSED], 2)))
            else:
                sides = self._side(one), self._side(two)
                found.update({(a, b): None for a in sides[0] for b in sides[1] if a != b})
        return np.array([*found], np.int64).reshape(-1, 2).T

    @cached_property
    def _kinds(self) -> dict[str, Kind]:
        return {c.name: c.kind for c in self.columns if c.kind is not None}

    @cached_property
    def _places(self) -> dict[tuple[str, ...], Indices | slice | None]:
        """The results of `places_of`."""
        return {}

    def _side(self, name: str) -> list[int]:
        column, part = self.index.get(name), ""
        if column is None:
            base, _, part = name.rpartition(":")
            column = self.index.get(base)
        return [
            k
            for k, single in enumerate(self.singles)
            if single.column == column and part in ("", single.part)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the schema; checkpoints and cuts store it."""
        found: dict[str, Any] = _SCHEMA.dump_python(self, mode="json")
        if not self.numeric_labels:  # earlier versions did not have it
            del found["numeric_labels"]
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Schema":
        """Return the schema in a JSON object.

        Raises:
            ValueError: it is not the object of a schema.
        """
        try:
            return _SCHEMA.validate_json(orjson.dumps(found))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"no schema: {where}: {first['msg']}") from error

    def after(self, changes: Sequence[Change]) -> "Schema":
        """Return the schema after changes, in their order.

        Raises:
            ValueError: a new column or label is known, or a changed column is not.
        """
        if not changes:
            return self
        columns, labels, dense = list(self.columns), dict(self.label_index), dict(self.place)
        index = dict(self.index)
        policies: dict[str, Any] = {}
        for change in changes:
            match change:
                case AddColumn(name, _, late):
                    if name in index:
                        raise ValueError(f"column {name!r} cannot be added: the schema has it")
                    index[name] = len(columns)
                    columns.append(Column(name, None, late))
                case SetKind(name, _):
                    if name not in index:
                        raise ValueError(f"column {name!r} has no kind: the schema lacks it")
                case AddLabels(names):
                    for label in names:
                        if label in labels:
                            raise ValueError(f"label {label!r} cannot be added: the schema has it")
                        labels[label] = len(labels)
                    continue
                case SetParts(name, parts):
                    columns[index[name]] = replace(columns[index[name]], parts=parts)
                    continue
                case SetPolicies(values):
                    policies.update(values)
                    continue
            k = index[change.name]
            columns[k] = replace(columns[k], kind=change.kind)
            if change.kind in DENSE:
                dense.setdefault(k, len(dense))
        return replace(
            self.with_policies(policies),
            columns=tuple(columns),
            labels=tuple(labels),
            dense=tuple(dense),
            version=self.version + len(changes),
        )

    def with_policies(self, values: Mapping[str, Any]) -> "Schema":
        """Return the schema with other values of some of POLICIES, given as JSON.

        Raises:
            ValueError: a field is not one of them, or has no such value.
        """
        if unknown := values.keys() - set(POLICIES):
            raise ValueError(f"{min(unknown)!r} is no policy of a schema")
        return Schema.from_json(self.to_json() | dict(values)) if values else self

    def changes_to(
        self, declared: "Schema", policies: Collection[str] = POLICIES
    ) -> tuple[Change, ...]:
        """Return the changes after which the schema has all that an operator declares.

        Columns and labels that are not declared stay, and so does a kind that is not declared.

        Args:
            declared: what is declared.
            policies: the fields of POLICIES that are; others stay, too.
        """
        found: list[Change] = []
        for column in declared.columns:
            k = self.index.get(column.name)
            own = Column(column.name) if k is None else self.columns[k]
            if k is None:
                found.append(AddColumn(column.name, column.kind))
            elif column.kind not in (None, own.kind):
                found.append(SetKind(column.name, column.kind))
            if column.parts != own.parts:
                found.append(SetParts(column.name, column.parts))
        if new := tuple(name for name in declared.labels if name not in self.label_index):
            found.append(AddLabels(new))
        mine, theirs = self.to_json(), declared.to_json()
        if values := {name: theirs[name] for name in policies if mine[name] != theirs[name]}:
            found.append(SetPolicies(values))
        return tuple(found)

    def changes_for(self, rows: Rows) -> tuple[Change, ...]:
        """Return the changes by which rows extend the schema; none if it has all they need.

        First come columns and kinds in order of first appearance, then the labels.
        """
        found: list[Change] = []
        room = self._room()
        kinds = self._kinds
        is_known = all(kinds.keys() >= set(chunk.names) for chunk in rows.chunks)
        for name, cells in ({} if is_known else cells_of(rows, skip=kinds)).items():
            k, kind = self.index.get(name), infer(cells)
            if k is not None and kind is not None:
                found.append(SetKind(name, kind))
            elif k is None and room > 0:
                room -= 1
                found.append(AddColumn(name, kind, late=bool(self.columns)))
        if labels := self._new_labels(rows):
            found.append(AddLabels(labels))
        return tuple(found)

    def check(self, rows: Rows) -> None:
        """Check that every cell and label can be learned.

        Values of undecided columns, and of columns that are new and allowed, are not checked.

        Raises:
            InvalidBatchError: a cell has a wrong kind (the first by row, and in a row the first of
                the schema), or a column or label is unknown and not allowed.
        """
        closed = self.columns and self.new_columns is ColumnPolicy.REJECT
        if closed:
            unknown_column(rows, self.index)
        check_cells(rows, self._kinds)
        if self.numeric_labels:
            check_numeric_labels(rows)
        elif self.new_labels is not LabelPolicy.OTHER and not self.knows_labels(rows):
            limit = self.max_classes if self.new_labels is LabelPolicy.GROW else 0
            check_labels(rows, self.label_index, limit)

    def takes(self, columns: Mapping[str, pa.DataType], labels: Collection[str]) -> bool:
        """Return whether `check` passes and `changes_for` is empty, whatever the rows' values.

        Args:
            columns: the type of each column of the rows.
            labels: all labels of the rows.
        """
        kinds = self._kinds
        if not all(name in kinds and fits(kinds[name], of) for name, of in columns.items()):
            return False
        if self.numeric_labels:
            return not np.isnan(label_numbers(pa.array(labels, pa.string()))).any()
        return all(label in self.label_index for label in labels)

    def codes(self, rows: Rows) -> Indices:
        """Return the index of each row's label, int64 [n]; -1 where the schema has none for it."""
        found, other = [NONE], self._other
        for chunk in rows.chunks:
            if chunk.labels is None:
                found.append(np.full(len(chunk), -1, np.int64))
            else:
                words, codes = chunk.coded_labels
                known = [self.label_index.get(text, other) for text in words]
                found.append(np.array(known, np.int64)[codes])
        return np.concatenate(found)

    def knows_labels(self, rows: Rows) -> bool:
        """Return whether the schema surely has every label of rows."""
        return all(
            chunk.labels is None or all(text in self.label_index for text in chunk.coded_labels[0])
            for chunk in rows.chunks
        )

    def places_of(self, names: tuple[str, ...]) -> Indices | slice | None:
        """Return which of the given columns lies in each dense place, int64 [width].

        Args:
            names: of columns.

        Returns:
            A slice of all, if that is their order. None unless they are all of the schema's
            columns, and all of those are numbers.
        """
        if names not in self._places:
            found: Indices | slice | None = None
            if len(names) == len(self.columns) == len(self.numbers) == self.width:
                index = {name: k for k, name in enumerate(names)}
                of_place = [index.get(self.columns[column].name, -1) for column in self.dense]
                if of_place == [*range(len(names))]:
                    found = slice(None)
                elif -1 not in of_place:
                    found = np.array(of_place, np.int64)
            if len(self._places) >= MOST_FORMS:
                self._places.clear()
            self._places[names] = found
        return self._places[names]

    @property
    def _other(self) -> int:
        return self.label_index.get(OTHER, -1) if self.new_labels is LabelPolicy.OTHER else -1

    def _room(self) -> int:
        """Return the number of columns that may be added."""
        if not self.columns:
            return self.max_columns
        if self.new_columns is not ColumnPolicy.ADD:
            return 0
        late = sum(column.late for column in self.columns)
        return min(MAX_LATE - late, self.max_columns - len(self.columns))

    def _new_labels(self, rows: Rows) -> tuple[str, ...]:
        is_closed = self.numeric_labels or self.new_labels is LabelPolicy.REJECT
        if is_closed or self.knows_labels(rows):
            return ()
        seen = labels_of(rows).values.unique().to_pylist()
        new = [name for name in seen if name not in self.label_index]
        if self.new_labels is LabelPolicy.GROW:
            return tuple(new[: max(self.max_classes - len(self.labels), 0)])
        has_other = OTHER in self.label_index
        proper = [name for name in new if name != OTHER]
        kept = proper[: max(self.max_classes - 1 - len(self.labels) + has_other, 0)]
        needs_other = not has_other and (OTHER in new or len(kept) < len(proper))
        if needs_other and len(self.labels) + len(kept) < self.max_classes:
            kept.append(OTHER)
        return tuple(kept)


_SCHEMA = TypeAdapter(Schema)
