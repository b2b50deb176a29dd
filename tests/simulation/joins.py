"""Joining in plain Python: whether what a cut records of labels is what it may record.

It knows when each question and each label came, in one order. A label must meet its question if
that was asked before; it may meet one that was asked before the decision; and nothing is learned
twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from service.log.cuts import Cut
from service.log.labels import Join, Place, Result
from service.log.position import ORIGIN, EntryId
from service.trainer.joining.joins import Joins

ASKED, BY_LABEL = 1_000_000, 100_000
"""Numbers of questions begin at the one; one that is learned with a label has so many more."""


class UnjoinedError(AssertionError):
    """A cut records what does not follow."""


@dataclass(frozen=True)
class Label:
    """A label of a question, as it was sent."""

    hash: bytes
    label: int


@dataclass
class Seen:
    """What the server has seen, in one order."""

    places: dict[bytes, list[tuple[Place, int]]] = field(default_factory=dict)
    """Where questions lie, and the moment at which each was asked, by the hash of the id."""
    numbers: dict[bytes, int] = field(default_factory=dict)
    """Numbers of the questions by the hash of the id."""
    labelled: dict[EntryId, int] = field(default_factory=dict)
    """The moment at which each entry of labels came."""
    moments: int = 0

    def ask(self, entry: EntryId, hashes: Sequence[bytes]) -> None:
        """Note an entry of questions."""
        self.moments += 1
        for row, own in enumerate(hashes):
            self.places.setdefault(own, []).append((Place(entry, row), self.moments))

    def label(self, entry: EntryId) -> None:
        """Note an entry of labels."""
        self.moments += 1
        self.labelled[entry] = self.moments


@dataclass(frozen=True)
class Rules:
    """The settings that decide what becomes of labels."""

    learns_last: bool = False
    has_grace: bool = True
    default: int | None = None
    """The label of questions that have timed out, or are assumed to have it."""
    sums: bool = False
    """Whether labels of an id are added up until its question's time is over."""
    is_weighted: bool = False
    """Whether each question is learned with the default at once, and corrected later."""
    wait_ms: float = 0
    """No sooner than so long after its question, a label is too late for the sum."""

    def weight_of(self, number: int) -> float:
        """Return the weight of an example that is learned."""
        if number < ASKED or not self.is_weighted:
            return 1.0
        label, p = (number - ASKED) // BY_LABEL, 1 - given(question_of(number))
        return (1 - p) * (1 + p) if label == self.default else 1 + p


@dataclass(frozen=True)
class Joined:
    """What cuts have decided so far."""

    used: Mapping[bytes, tuple[Place, int]] = field(default_factory=dict)
    """The question and the label of each id that has one."""
    waiting: Mapping[bytes, tuple[int, str]] = field(default_factory=dict)
    """The label that waits for an id, and its source."""
    given_up: Mapping[bytes, int] = field(default_factory=dict)
    """Labels that have waited in vain; later ones may have been decided on while they waited."""
    closed: EntryId = ORIGIN
    now: int = 0

    def after(
        self,
        cut: Cut,
        parts: Mapping[EntryId, tuple[Sequence[Label], str]],
        seen: Seen,
        rules: Rules,
    ) -> tuple["Joined", dict[EntryId, list[int]], list[tuple[int, str]]]:
        """Return what is decided after a cut, and the numbers that it learns.

        Args:
            cut: as it is recorded.
            parts: by entry, the labels that the cut passes, and their source.
            seen: by the server until now.
            rules: of the trainers.

        Returns:
            The decisions; by entry the numbers of its questions that are learned; and the number
            and the source of each that had waited.

        Raises:
            UnjoinedError: the decisions do not follow.
        """
        if {entry for entry, (labels, _) in parts.items() if labels} != cut.joins.keys():
            raise UnjoinedError(f"labels of {[*parts]} are passed, and {[*cut.joins]} decided on")
        if 0 < cut.now < self.now:
            raise UnjoinedError(f"the time of the log goes back from {self.now} to {cut.now}")
        one, learned = self, dict[EntryId, list[int]]()
        for entry, (labels, source) in parts.items():
            joins = cut.joins.get(entry, ())
            if len(joins) != len(labels):
                raise UnjoinedError(f"{len(labels)} labels of {entry} are passed: {joins}")
            for join, label in zip(joins, labels, strict=True):
                numbers = learned.setdefault(entry, [])
                moment = seen.labelled[entry], entry.milliseconds
                one = one._decided(join, label, source, seen, rules, moment, numbers)
        met: list[tuple[int, str]] = []
        for join in cut.met:
            one = one._met(join, seen, rules, met)
        waiting, given_up = dict(one.waiting), dict(one.given_up)
        for own in cut.unknown:
            if own not in waiting:
                raise UnjoinedError("a label is given up that does not wait")
            given_up[own] = waiting.pop(own)[0]
        if cut.closed != ORIGIN and cut.closed < one.closed:
            raise UnjoinedError(f"questions are opened again: {cut.closed} after {one.closed}")
        used = dict(one.used)
        for old, new in cut.repeats:
            [own] = [k for k, (place, _) in used.items() if place == old]
            if not one._is_open(new, own, seen):
                raise UnjoinedError(f"{new} does not repeat {old}")
            used[own] = new, used[own][1]
        one = replace(one, used=used)
        for own in waiting.keys() & seen.places.keys() if rules.sums else ():
            if one.closed <= max(place.entry for place, _ in seen.places[own]) < cut.closed:
                raise UnjoinedError("a question is closed before the sum of its labels is learned")
        closed, now = max(one.closed, cut.closed), max(one.now, cut.now)
        one = replace(one, waiting=waiting, given_up=given_up, closed=closed, now=now)
        return one, learned, met

    def agrees(self, joins: Joins) -> bool:
        """Return whether a checkpoint holds the same of what counts from now on."""
        used = {place: label for place, label in self.used.values() if place.entry >= self.closed}
        waiting = {own: label for own, (label, _) in self.waiting.items()}
        found = {own: one.label for own, one in joins.waiting.items()}
        return (joins.used, found, joins.closed) == (used, waiting, self.closed)

    def _decided(
        self,
        join: Join,
        label: Label,
        source: str,
        seen: Seen,
        rules: Rules,
        when: tuple[int, int],
        numbers: list[int],
    ) -> "Joined":
        """Return what is decided after a label; add the number that is learned."""
        own, places = label.hash, seen.places.get(label.hash, [])
        used, waits = self.used.get(own), self.waiting.get(own)
        moment, at = when
        is_assumed = rules.is_weighted and (used is None or used[1] == rules.default)
        before = [place for place, asked in places if asked < moment]
        is_closed = used is not None and used[0].entry < self.closed  # it may be forgotten
        may_wait = all(place.entry < self.closed for place in before)
        may_wait = may_wait and (used is None or is_closed or is_assumed)
        is_timed_out = used is None and bool(places) and rules.default is not None
        is_right, after = False, self
        match join.result:
            case Result.JOINED:
                newest = max((place.entry for place in before), default=ORIGIN)
                is_new = used is None or is_closed  # asked again after that, it is another one
                is_right = is_new and self._is_open(join.place, own, seen)
                is_right = is_right and join.place is not None and join.place.entry >= newest
                is_right = is_right and not (rules.sums or rules.is_weighted)
            case Result.CORRECTED:
                is_right = is_assumed and used is not None and join.place == used[0]
                is_right = is_right and label.label != rules.default
            case Result.ADDED:
                is_right = rules.sums and (used is None or is_closed)
                is_right = is_right and (waits is not None or not may_wait or bool(places))
                total = label.label + (waits[0] if waits else 0)
                after = replace(self, waiting=self.waiting | {own: (total, source)})
            case Result.DUPLICATE:
                is_right = (used is not None and used[1] == label.label) or (
                    waits is not None and waits[0] == label.label
                )
                is_right = is_right or (bool(places) and rules.default == label.label)
                is_right = is_right or self.given_up.get(own) == label.label
            case Result.CONFLICT:
                is_right = used is not None and used[1] != label.label
                if waits is not None and not rules.learns_last:
                    is_right = is_right or waits[0] != label.label
                is_right = is_right and not (is_assumed and waits is None)
                is_right = is_right or self.given_up.get(own, label.label) != label.label
                if used is not None and rules.learns_last:
                    is_right = is_right and join.place == used[0]
            case Result.WAITING:
                is_right = may_wait and rules.has_grace and (waits is None or rules.learns_last)
                is_right = (
                    is_right or is_timed_out
                )  # and not recorded yet: this label supersedes it
                is_right = is_right or (waits is not None and rules.learns_last and used is None)
                if is_assumed and waits is None and label.label != rules.default:
                    is_right = is_right or bool(places)  # the assumption is recorded before
                after = replace(self, waiting=self.waiting | {own: (label.label, source)})
            case Result.UNKNOWN:
                is_right = may_wait and not rules.has_grace
            case Result.LATE:
                is_right = any(place.entry < self.closed for place, _ in places)
                if rules.sums and places:
                    ago = at - min(place.entry.milliseconds for place, _ in places)
                    is_right = is_right or used is not None or ago >= rules.wait_ms
        if not is_right or (join.place is not None) != (
            join.result in (Result.JOINED, Result.CORRECTED)
            or (join.result == Result.CONFLICT and rules.learns_last)
        ):
            raise UnjoinedError(
                f"{join} is decided on {label}, with {used=}, {waits=}, {places=}, closed before "
                f"{self.closed}, at moment {moment}"
            )
        if join.place is None:
            return after
        numbers.append(seen.numbers[own] + BY_LABEL * label.label)
        return self._using(own, join.place, label.label)

    def _met(
        self, join: Join, seen: Seen, rules: Rules, numbers: list[tuple[int, str]]
    ) -> "Joined":
        """Return what is decided after a label that had waited; add the number that is learned."""
        [own] = [k for k, places in seen.places.items() for p, _ in places if p == join.place]
        label, source = self.waiting.get(own, (None, ""))
        expected: tuple[Place | None, int | None] | None = None
        if join.result in (Result.TIMEOUT, Result.ASSUMED):
            label, source = rules.default, str(join.result)
        if join.result == Result.CORRECTED:
            expected = join.place, rules.default
        is_open = self._is_open(join.place, own, seen)
        is_ruled = rules.is_weighted == (join.result in (Result.ASSUMED, Result.CORRECTED))
        used = self.used.get(own)
        if used is not None and used[0].entry < self.closed:
            used = None  # it is asked again, and its id may be forgotten
        if used != expected or not (is_open and is_ruled) or label is None:
            raise UnjoinedError(f"{join} is met, with {label=}, {used=}")
        if label != join.label:
            raise UnjoinedError(f"{join} is met, and {label=} waits")
        assert join.place is not None
        numbers.append((seen.numbers[own] + BY_LABEL * label, source))
        after = self._using(own, join.place, label)
        waits = self.waiting.get(own)
        if join.result == Result.ASSUMED and waits is not None and waits[0] != label:
            return replace(after, waiting=self.waiting)
        return after

    def _is_open(self, place: Place | None, own: bytes, seen: Seen) -> bool:
        known = {place for place, _ in seen.places.get(own, [])}
        return place in known and place is not None and place.entry >= self.closed

    def _using(self, own: bytes, place: Place, label: int) -> "Joined":
        waiting = {k: waits for k, waits in self.waiting.items() if k != own}
        return replace(self, used={**self.used, own: (place, label)}, waiting=waiting)


def given(question: int) -> float:
    """Return the probability that a question's answer gives each class; it is exact in float16."""
    return question % 8 / 8


def question_of(number: int) -> int:
    """Return the number of a question that was learned with a label."""
    return (number - ASKED) % BY_LABEL + ASKED
