"""The sum of what cuts have decided on labels; a part of checkpoints."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson

from service.log.cuts import Cut
from service.log.labels import Join, Label, Place, Result
from service.log.position import BEGINNING, ORIGIN, EntryId, Position
from streams.batch import InvalidBatchError
from streams.rows.names import canonical

RECENT = 1_000
"""Answers in the rolling accuracy of the answers that were given."""
MOST = (2 - 2**-23) * 2.0**127
"""The largest float32."""


class Waiting(NamedTuple):
    """A label, or a sum of labels, that waits for its question."""

    label: Label
    weight: float
    source: str
    since: int
    """Time of the log, in milliseconds."""
    at: Position = BEGINNING
    """The position after the label, while the decision is not recorded."""


def added(one: Label, more: Label) -> Label:
    """Return the sum of two labels of a question, of the type of the second.

    >>> added("0.5", "2"), added(0.5, 2.0)
    ('2.5', 2.5)

    Raises:
        InvalidBatchError: one is no number, or the sum is outside float32.
    """
    try:
        total = float(one) + float(more)
    except ValueError as error:
        raise InvalidBatchError(f"the label {more!r} is no number, and cannot be added") from error
    if not abs(total) <= MOST:
        raise InvalidBatchError(f"the sum {total} of the labels is outside float32")
    return canonical(total) if isinstance(more, str) else total


@dataclass
class Joins:
    """The sum of what cuts have decided on labels; data only, and the same after every replay."""

    now: int = 0
    """Time of the log at the last decision, in Unix milliseconds."""
    closed: EntryId = ORIGIN
    """Questions before this entry are closed."""
    used: dict[Place, Label] = field(default_factory=dict)
    """The labels of questions that are not closed."""
    waiting: dict[bytes, Waiting] = field(default_factory=dict)
    """Labels that wait for their questions, and sums that wait until theirs are learned, by the
    hash of the id, oldest first."""
    counts: Counter[str] = field(default_factory=Counter)
    """Labels by result. One that waited counts as that, and then as what became of it."""
    evicted: int = 0
    """Questions that were closed before their time."""
    scored: int = 0
    """Answers that can be compared with their labels."""
    correct: int = 0
    """Answers that were right when they were given."""
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    """True or False for each of the last of them."""

    def __bool__(self) -> bool:
        return self.now > 0

    def apply(self, cut: Cut) -> None:
        """Take in the decisions of a cut."""
        self.now = max(self.now, cut.now)
        for joins in cut.joins.values():
            for join in joins:
                self.note(join, cut.now)
        for join in cut.met:
            self.note(join, cut.now)
        self.give_up(cut.unknown)
        for closed, place in cut.repeats:
            self.repeat(closed, place)
        self.close(cut.closed)
        self.evicted += cut.evicted

    def note(self, join: Join, now: int, at: Position = BEGINNING) -> None:
        """Take in what became of a label.

        Args:
            join: the decision.
            now: time of the log, in milliseconds.
            at: the position after it, while it is not recorded.
        """
        self.counts[join.result] += 1
        before = self.waiting.get(join.hash)
        if join.result in (Result.WAITING, Result.ADDED):
            since = now if before is None else before.since
            is_more = before is not None and join.result == Result.ADDED
            label = added(before.label, join.label) if before and is_more else join.label
            self.waiting[join.hash] = Waiting(label, join.weight, join.source, since, at)
        if join.place is None:
            return
        if join.result != Result.ASSUMED or (before is not None and before.label == join.label):
            self.waiting.pop(join.hash, None)  # another label waits to correct what is assumed
        self.used[join.place] = join.label
        if join.is_right is not None and join.result == Result.JOINED:
            self.scored += 1
            self.correct += join.is_right
            self.recent.append(join.is_right)

    def give_up(self, hashes: Iterable[bytes]) -> None:
        """Let labels wait no longer."""
        for own in hashes:
            self.waiting.pop(own, None)
            self.counts[Result.UNKNOWN] += 1

    def repeat(self, closed: Place, place: Place) -> None:
        """Let a question that repeats another have its label, too."""
        if closed in self.used:
            self.used[place] = self.used[closed]

    def close(self, before: EntryId) -> None:
        """Close the questions before an entry."""
        if before > self.closed:
            self.closed = before
            self.used = {p: label for p, label in self.used.items() if p.entry >= before}

    def copy(self) -> "Joins":
        """Return a copy that changes alone."""
        return replace(
            self,
            used=dict(self.used),
            waiting=dict(self.waiting),
            counts=self.counts.copy(),
            recent=deque(self.recent, RECENT),
        )

    def to_json(self) -> bytes:
        """Return the document that a checkpoint holds."""
        used: dict[str, list[object]] = {}
        for (entry, row), label in self.used.items():
            used.setdefault(str(entry), []).append([row, label])
        waiting = [[own.hex(), *one[:4]] for own, one in self.waiting.items()]
        return orjson.dumps(
            {
                "now": self.now,
                "closed": str(self.closed),
                "used": used,
                "waiting": waiting,
                "counts": {str(result): n for result, n in self.counts.items()},
                "evicted": self.evicted,
                "scored": [self.scored, self.correct],
                "recent": "".join("01"[one] for one in self.recent),
            }
        )

    @classmethod
    def from_json(cls, raw: bytes) -> "Joins":
        """Return what `to_json` has written.

        Raises:
            ValueError, KeyError, TypeError: the bytes are something else.
        """
        found: dict[str, Any] = orjson.loads(raw)
        return cls(
            found["now"],
            EntryId.parse(found["closed"]),
            {
                Place(EntryId.parse(entry), row): label
                for entry, rows in found["used"].items()
                for row, label in rows
            },
            {bytes.fromhex(own): Waiting(*one) for own, *one in found["waiting"]},
            Counter(found["counts"]),
            found["evicted"],
            found["scored"][0],
            found["scored"][1],
            deque((one == "1" for one in found["recent"]), RECENT),
        )
