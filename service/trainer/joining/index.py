"""The questions that are known: where each lies, by the hash of its id."""

from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import NamedTuple

from service.log.labels import HASH_BYTES, Place
from service.log.position import ORIGIN, TOP, EntryId
from service.trainer.joining.joins import Joins

KNOWN = 2
"""Ids are known for so many times FUNNEL_LABEL_TTL, so that a late label is not an unknown one."""


CLOSED_AT_ONCE = 50_000
"""Questions after which the rest is closed or forgotten later: the lease is renewed in between."""


class Known(NamedTuple):
    """An entry of questions that is known."""

    id: EntryId
    at: int
    """Time of the log, in milliseconds."""
    hashes: bytes
    """HASH_BYTES a question."""
    size: int
    """Bytes of the entry."""

    def places(self) -> Iterable[tuple[Place, bytes]]:
        """Yield the place and the hash of each question."""
        for start in range(0, len(self.hashes), HASH_BYTES):
            own = self.hashes[start : start + HASH_BYTES]
            yield Place(self.id, start // HASH_BYTES), own


class Index:
    """Questions that are open, labelled, or closed not long ago.

    Args:
        joins: the decisions so far; they change as more are taken.
    """

    def __init__(self, joins: Joins) -> None:
        self._joins = joins
        self._places: dict[bytes, Place] = {}
        self._known: deque[Known] = deque()
        """Entries that are not closed, oldest first; ids may have been asked again later."""
        self._closed: deque[Known] = deque()
        """Closed entries whose ids are still known."""
        self._closed_bytes = 0
        self._unlabelled: deque[Known] = deque()
        """Entries of which no question has timed out, oldest first."""
        self._unlabelled_bytes = 0
        self._repeats: dict[Place, list[Place]] = {}
        """Questions that repeat an open one that has a label, by that one."""
        self.repeated: list[tuple[Place, Place]] = []
        """Closed questions with a label, and the open ones that repeat them, to be recorded."""
        self.newest = ORIGIN
        """The last entry that was entered."""
        self.open = self.labelled = 0
        """Questions without and with a label that are not closed."""
        self.bytes = 0
        """Bytes of the entries that are not closed."""
        self.changes = 0
        """Calls that may have changed what `find` returns."""
        self.has_more = False
        """True if `close` has closed as many questions as it may at once."""

    @property
    def held(self) -> int:
        """Entries that are held in memory, each once for each list that it is in."""
        return len(self._known) + len(self._closed) + len(self._unlabelled)

    @property
    def oldest(self) -> Known | None:
        """The oldest entry that is not closed."""
        return self._known[0] if self._known else None

    def find(self, own: bytes) -> Place | None:
        """Return the question of an id."""
        return self._places.get(own)

    def enter(self, known: Known) -> list[tuple[Place, bytes]]:
        """Know the next entry; return its questions for which labels wait.

        An id that is asked again while it has no label is that of the newer question.
        """
        self.newest = known.id
        self.changes += 1
        if known.id < self._joins.closed:
            self._add_closed(known)
        else:
            self._known.append(known)
            self._unlabelled.append(known)
            self._unlabelled_bytes += known.size
            self.bytes += known.size
        return [(place, own) for place, own in known.places() if self._enter(place, own)]

    def _enter(self, place: Place, own: bytes) -> bool:
        before, joins = self._places.get(own), self._joins
        if before is not None and before in joins.used:
            self._repeats.setdefault(before, []).append(place)
            return False
        self._places[own] = place
        if before is not None and before.entry >= joins.closed:
            self.open -= 1
        if place.entry < joins.closed:
            return False
        is_used = place in joins.used
        self.labelled += is_used
        self.open += not is_used
        return own in joins.waiting

    def use(self, place: Place) -> None:
        """Count the first label of an open question."""
        self.open -= 1
        self.labelled += 1

    def close(self, is_over: Callable[[Known], bool]) -> EntryId | None:
        """Close the oldest entries, up to CLOSED_AT_ONCE questions and the rest of the last entry;
        return the one before which they are, or None without any.

        Args:
            is_over: returns whether an entry is closed; the first that is not ends that.
        """
        known, count, left = self._known, len(self._known), CLOSED_AT_ONCE
        self.changes += 1
        while known and left > 0 and is_over(known[0]):
            one = known.popleft()
            self._add_closed(one)
            self.bytes -= one.size
            left -= len(one.hashes) // HASH_BYTES
            for place, own in one.places():
                if self._places.get(own) == place:
                    is_used = place in self._joins.used
                    self.labelled -= is_used
                    self.open -= not is_used
                    self._hand_over(place, own)
        self.has_more = left <= 0
        if len(known) == count:
            return None
        first = known[0].id if known else EntryId(self.newest[0], self.newest[1] + 1)
        while self._unlabelled and self._unlabelled[0].id < first:
            self._pass_unlabelled()
        return first

    def _pass_unlabelled(self) -> Known:
        known = self._unlabelled.popleft()
        self._unlabelled_bytes -= known.size
        return known

    @property
    def oldest_waiting(self) -> EntryId:
        """The oldest entry of which no question has timed out; TOP without any."""
        return self._unlabelled[0].id if self._unlabelled else TOP

    def _hand_over(self, closed: Place, own: bytes) -> None:
        """Let the next question that repeats a closed one have its label, too.

        Otherwise it would be open after a restart, when nothing is known of the closed one.
        """
        if not (repeats := self._repeats.pop(closed, [])):
            return
        place, *rest = repeats
        if rest:
            self._repeats[place] = rest
        self._joins.repeat(closed, place)
        self.repeated.append((closed, place))
        self._places[own] = place
        self.labelled += 1

    def _add_closed(self, known: Known) -> None:
        self._closed.append(known)
        self._closed_bytes += known.size

    def timed_out(
        self, before: int, most: int, most_bytes: float = inf
    ) -> list[tuple[Place, bytes, bool]]:
        """Return open questions up to a time of the log, each of them once, and whether it is over.

        Args:
            before: the time, in milliseconds.
            most: questions after which no further entry is looked at.
            most_bytes: of the entries that have not timed out: beyond it, the oldest do early.
        """
        found: list[tuple[Place, bytes, bool]] = []
        waiting = self._unlabelled
        while waiting and len(found) < most:
            is_over = waiting[0].at <= before
            if not is_over and self._unlabelled_bytes <= most_bytes:
                break
            known = self._pass_unlabelled()
            if known.id >= self._joins.closed:
                used = self._joins.used
                found += [
                    (place, own, is_over)
                    for place, own in known.places()
                    if self._places.get(own) == place and place not in used
                ]
        return found

    def forget(self, before: int, most: int) -> None:
        """Forget closed questions.

        Args:
            before: those up to this time of the log, in milliseconds.
            most: bytes of the entries of which the others are kept.
        """
        closed, left = self._closed, 2 * CLOSED_AT_ONCE
        self.changes += 1
        while closed and left > 0 and (closed[0].at <= before or self._closed_bytes > most):
            known = closed.popleft()
            self._closed_bytes -= known.size
            left -= len(known.hashes) // HASH_BYTES
            for place, own in known.places():
                if self._places.get(own) == place:
                    del self._places[own]
