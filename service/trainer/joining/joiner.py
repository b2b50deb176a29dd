"""The joiner decides which question each label meets, and what becomes of it otherwise.

A label names a question by its id. The decision is recorded in a cut. The joiner is ahead of the
cuts, and after a restart it starts from what they add up to (`service.trainer.joining.joins`).
"""

import asyncio
import itertools
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Literal, NamedTuple

from service.log.cuts import Cut, Pending, decided
from service.log.entries import Entry, Shape
from service.log.errors import GapError, damaged
from service.log.labels import HASH_BYTES, Join, Label, Labels, Place, Result
from service.log.log import Log, Recording
from service.log.position import BEGINNING, ORIGIN, TOP, EntryId, Position
from service.log.questions import Questions, read_questions
from service.process import Clock
from service.trainer.joining.examples import Rules, again, with_example
from service.trainer.joining.importance import importance
from service.trainer.joining.index import KNOWN, Index, Known
from service.trainer.joining.joins import RECENT, Joins, added
from streams.batch import InvalidBatchError

logger = logging.getLogger("funnel")

CACHED = 32 << 20
"""Bytes of questions that are kept decoded."""
MOST_WAITING = 1_000_000
"""Labels that wait for their questions; further ones are unknown at once."""
AT_ONCE = 1_000
"""Labels that are decided on in one go, and questions that are read: the lease is renewed in
between."""
TIMED_OUT = 10_000
"""Questions without a label that time out in one go."""
STEPS = 60
"""Questions are closed in so many steps a FUNNEL_LABEL_TTL."""
MEETING = (Result.JOINED, Result.CORRECTED, Result.ADDED)
"""Results of labels of open questions."""
Keeps = Literal["first", "last", "sum"]
"""Which labels of a question count."""


class Summary(NamedTuple):
    """The questions that a joiner knows."""

    open: int
    """Questions without a label that are not closed."""
    bytes: int
    """Bytes of the entries of questions that are not closed."""
    labelled: int
    """Questions with a label that are not closed."""
    oldest: float
    """Age of the oldest entry of questions that is not closed, in seconds; 0 without one."""
    damaged: int
    """Entries of questions that could not be read, in this process."""
    delay: float | None
    """Median of the seconds from a question to its label, of the last RECENT; None without any."""


class Joiner:
    """Decides which question each label meets.

    It reads the questions up to their end before it decides on labels, so that a question that was
    asked before its label is known.

    Args:
        clock: bounds the advance of the log's time.
        ttl: seconds for which a question stays open.
        grace: seconds for which a label waits for its question.
        keeps: a second label that differs: ``first`` ignores it, ``last`` learns the question again
            with it, and ``sum`` adds all labels up until the question's time is over.
        delayed: called with the seconds from questions to their labels.
        timeout: seconds after which a question without a label is learned with one; None for never.
        default: that label, as text.
        most_bytes: of the questions that are not closed: beyond it, the oldest are.
        is_weighted: whether every question is learned with the default at once, and again with
            another label, both with weights (see `service.trainer.joining.importance`).
    """

    def __init__(
        self,
        clock: Clock,
        ttl: float = 3_600.0,
        grace: float = 60.0,
        keeps: Keeps = "first",
        delayed: Callable[[Sequence[float]], object] = lambda _: None,
        timeout: float | None = None,
        default: str = "",
        most_bytes: int = 256 << 20,
        is_weighted: bool = False,
    ) -> None:
        self._timeout = None if timeout is None else round(1000 * timeout)
        self._default, self.most_bytes = default, most_bytes
        self.evicted_bytes = 0
        """Bytes of entries that were closed before their time, since room was last made."""
        self._clock, self._delayed, self._is_weighted = clock, delayed, is_weighted
        self._learns_last, self._sums = keeps == "last", keeps == "sum"
        self._ttl, self._grace = round(1000 * ttl), round(1000 * grace)
        self.now = 0
        """Time of the log, in Unix milliseconds: the server's, but it never goes back, and advances
        no faster than the clock."""
        self._looked_at: float | None = None
        self._damaged = 0
        self._delays: deque[float] = deque(maxlen=RECENT)
        self._reading = asyncio.Lock()
        """Held while questions are read, and while labels are decided on."""
        self.is_deciding = False
        """True while labels are decided on: nothing else may be decided until they are pending."""
        self.rests = asyncio.Event()
        """Set unless entries are being joined, which may take long."""
        self.rests.set()
        self.begin(Joins())

    def begin(self, joins: Joins) -> None:
        """Begin where the recorded cuts end: the questions are read again when they are needed."""
        self.joins = joins.copy()
        self.now = max(self.now, joins.now)
        self._index = Index(self.joins)
        self._newest = ORIGIN
        self._is_behind = False
        """True if there are questions that were left to the next look: labels may wait for them."""
        self._met: dict[tuple[Place, bool], tuple[Join, Position]] = {}
        """Labels that are about to be recorded as met, and where they lie, by their questions, and
        by whether they are assumed."""
        self._alone = dict.fromkeys(self.joins.waiting)
        """Hashes of the ids of waiting labels whose questions are not known, oldest first."""
        self.met_since: float | None = None
        """Monotonic time since which such a label waits to be recorded, in seconds."""
        self._cache: OrderedDict[EntryId, tuple[Questions, int]] = OrderedDict()
        self._cached = 0
        self._closed_at = 0

    def look(self, server: int) -> None:
        """Look at the server's time, in Unix milliseconds."""
        at = self._clock.monotonic()
        if self._looked_at is None:
            self.now = max(self.now, server)
        else:
            elapsed = round(1000 * (at - self._looked_at))
            self.now = max(self.now, min(server, self.now + elapsed))
        self._looked_at = at

    @property
    def _latest(self) -> int:
        """The latest time that the log can have now, in Unix milliseconds."""
        if self._looked_at is None:
            return self.now
        return self.now + round(1000 * (self._clock.monotonic() - self._looked_at))

    @property
    def summary(self) -> Summary:
        """The questions that are known."""
        index = self._index
        age = 0 if index.oldest is None else max(0, self.now - index.oldest.at)
        delay = median(self._delays) if self._delays else None
        return Summary(index.open, index.bytes, index.labelled, age / 1000, self._damaged, delay)

    @property
    def met(self) -> int:
        """Labels that are about to be recorded as met."""
        return len(self._met)

    @property
    def newest(self) -> EntryId:
        """The last entry of questions that was read."""
        return self._newest

    @property
    def highest(self) -> EntryId:
        """An id that was given to questions, and no later question of the same stream has."""
        milliseconds, sequence = self.joins.closed
        return max(self._newest, EntryId(milliseconds, max(0, sequence - 1)))

    async def look_for_loss(self, log: Log) -> None:
        """Begin again with the questions if their stream was deleted.

        The server gives ids by its clock. If that has stepped back, too, new questions would have
        ids that were read or closed before; so later ones get higher ids.
        """
        async with self._reading:
            highest = self.highest
            if (await log.extent()).asked >= highest:
                return
            await log.raise_asked(highest)
            logger.error(
                "the questions up to %s were deleted; labels of those that are gone are unknown",
                highest,
            )
            self._index, self._newest = Index(self.joins), ORIGIN
            self._alone = dict.fromkeys(self.joins.waiting)
            self._cache.clear()
            self._cached = 0

    async def catch_up(self, log: Log, rules: Rules, most: float = math.inf) -> None:
        """Read the questions up to their end.

        Args:
            log: with the questions.
            rules: of the model.
            most: questions after which the rest is left to the next call.
        """
        async with self._reading:
            await self._read(log, rules, most)

    async def _read(self, log: Log, rules: Rules, most: float) -> None:
        met: list[tuple[Place, bytes]] = []
        count = in_one_go = 0
        self._is_behind = True
        while count < most and (found := await log.asked_after(self._newest)):
            for entry, hashes, size in found:
                self._newest = entry
                if not hashes or len(hashes) % HASH_BYTES:
                    self._note_damage(entry, "it has no hashes of ids")
                    continue
                at = min(entry.milliseconds, self._latest) if self.now else entry.milliseconds
                met += self._index.enter(Known(entry, at, hashes, size))
                count += len(hashes) // HASH_BYTES
                if count >= most:
                    break
                if count - in_one_go >= AT_ONCE:
                    in_one_go = count
                    await asyncio.sleep(0)
        self._is_behind = count >= most
        await self._meet(log, met, rules)

    async def _meet(self, log: Log, met: Sequence[tuple[Place, bytes]], rules: Rules) -> None:
        """Let labels that wait meet their questions, which have come."""
        if not met:
            return
        questions = await self._fetch(log, {place.entry for place, _ in met}, rules.shape)
        for place, own in met:
            waits = self.joins.waiting.get(own)
            if waits is None or self._index.find(own) != place:
                continue
            if self._sums:
                self._alone.pop(own, None)
                continue
            self._assume(place, own, questions, rules)
            result, found = self._result(own, waits.label, place, rules)
            if found is not None and result in (Result.JOINED, Result.CORRECTED):
                label = Join(result, found, own, waits.label, waits.weight, source=waits.source)
                self._record(self._learnable(label, questions, rules), waits.at)

    async def time_out(self, log: Log, rules: Rules, is_read: bool) -> None:
        """Let questions be learned with the sums of their labels, or without one with the default.

        Args:
            log: with the questions.
            rules: of the model.
            is_read: whether all entries of the log were read when its time was last looked at.
                Otherwise the time of nothing is over, so that labels that came in time count.
        """
        label = self._negative(rules)
        if label is None and not self._sums:
            return
        before = self.now - (self._ttl if self._timeout is None else self._timeout)
        most_bytes = self.most_bytes if self._sums else math.inf
        async with self._reading:
            due = self._index.timed_out(
                before if is_read or self._is_weighted else -1,
                TIMED_OUT - len(self._met),
                most_bytes,
            )
            chosen = [
                (place, own, has_sum)
                for place, own, is_over in due
                if (has_sum := self._sums and own in self.joins.waiting)
                or (is_over and label is not None)
            ]
            entries = {place.entry for place, *_ in chosen}
            questions = await self._fetch(log, entries, rules.shape)
        for place, own, has_sum in chosen:
            if place in self.joins.used:
                continue
            if self._is_weighted:
                self._assume(place, own, questions, rules)
            elif has_sum:
                self._learn_sum(place, own, questions, rules)
            elif label is not None:
                join = Join(Result.TIMEOUT, place, own, label, source=str(Result.TIMEOUT))
                self._record(self._learnable(join, questions, rules), BEGINNING)

    def _negative(self, rules: Rules) -> Label | None:
        """Return the label of questions that get none; None if there is none."""
        if self._timeout is None:
            return None
        if (label := rules.label_of(self._default)) is None:
            logger.error("FUNNEL_LABEL_TIMEOUT: %r is no label of this model", self._default)
            self._timeout, self._is_weighted = None, False
        return label

    def _assume(
        self, place: Place, own: bytes, questions: Mapping[EntryId, Questions], rules: Rules
    ) -> None:
        """Let an open question be learned with the default at once, if that is the setting."""
        label = self._negative(rules) if self._is_weighted else None
        if label is None or place in self.joins.used or place.entry < self.joins.closed:
            return
        waits = self.joins.waiting.get(own)
        at = BEGINNING if waits is None else waits.at
        join = Join(Result.ASSUMED, place, own, label, source=str(Result.ASSUMED))
        self._record(self._learnable(join, questions, rules), at)

    def _learn_sum(
        self, place: Place, own: bytes, questions: Mapping[EntryId, Questions], rules: Rules
    ) -> None:
        """Let a question be learned with the sum of its labels; a failure gives them up."""
        waits = self.joins.waiting[own]
        join = Join(Result.JOINED, place, own, waits.label, waits.weight, source=waits.source)
        learned = self._learnable(join, questions, rules)
        if learned.place is None:
            self._alone[own] = None
        self._record(learned, waits.at)

    def _record(self, join: Join, at: Position) -> None:
        """Let a question that has a label now be learned by a cut of its own, if it can be."""
        if join.place is None:
            return
        self._use(join)
        self._met[join.place, join.result == Result.ASSUMED] = join, at
        if self.met_since is None:
            self.met_since = self._clock.monotonic()

    async def join(
        self, log: Log, entries: Sequence[Entry], begun: Position, rules: Rules
    ) -> list[Entry]:
        """Return entries with what becomes of their labels, decided in order.

        Args:
            log: with the questions.
            entries: the next ones, without what lies before a position.
            begun: that position.
            rules: of the model.
        """
        labels = [entry.labels for entry in entries if entry.labels is not None]
        if not labels:
            return [*entries]
        self.rests.clear()
        try:
            return await self._join(log, entries, labels, begun, rules)
        finally:
            self.rests.set()

    async def _join(
        self,
        log: Log,
        entries: Sequence[Entry],
        labels: Sequence[Labels],
        begun: Position,
        rules: Rules,
    ) -> list[Entry]:
        await self.catch_up(log, rules)
        hashes = {own for each in labels for own in each.hashes}
        fetched, questions = set[EntryId](), dict[EntryId, Questions]()
        while True:
            seen = self._index, self._index.changes
            if more := self._entries_of(hashes) - fetched:
                questions |= await self._fetch(log, more, rules.shape)
                fetched |= more
            async with self._reading:
                is_same = (self._index, self._index.changes) == seen  # others may come meanwhile
                if is_same:
                    return await self._decide_on(entries, begun, questions, rules)

    async def _decide_on(
        self,
        entries: Sequence[Entry],
        begun: Position,
        questions: Mapping[EntryId, Questions],
        rules: Rules,
    ) -> list[Entry]:
        """Return entries with what becomes of their labels, as `join` does."""
        self.is_deciding = True
        try:
            return [
                entry
                if entry.labels is None
                else decided(entry, await self._decide(entry, begun, questions, rules))
                for entry in entries
            ]
        finally:
            self.is_deciding = False

    def _entries_of(self, hashes: Collection[bytes]) -> set[EntryId]:
        """Return the entries of the questions with these ids that are known."""
        found = map(self._index.find, hashes)
        return {place.entry for place in found if place is not None}

    async def _decide(
        self,
        entry: Entry,
        begun: Position,
        questions: Mapping[EntryId, Questions],
        rules: Rules,
    ) -> list[Join]:
        assert entry.labels is not None, "it has labels"
        first = 1 + ((begun.taken or 0) if begun.entry == entry.id else 0)
        weights = entry.labels.weights or (1.0,) * len(entry.labels)
        found, find, source = [], self._index.find, entry.source
        delays: list[float] = []
        each = zip(entry.labels.hashes, entry.labels.labels, weights, strict=True)
        for k, (own, label, weight) in enumerate(each, first):
            at, known = Position(entry.id, k), find(own)
            if known is not None and self._is_weighted:
                self._assume(known, own, questions, rules)
            result, place = self._result(own, label, known, rules)
            other = None if known is None else self._superseded_by(known, label)
            if other is not None:
                result, place = Result.JOINED, other
            join = Join(result, place, own, label, weight, 1.0, source)
            if place is not None:
                join = self._learnable(join, questions, rules)
            if other is not None and join.place == other:
                found.append(self._supersede(join, at))
                continue
            if known is not None and join.result in MEETING:
                delays.append(max(0, entry.id.milliseconds - known.entry.milliseconds) / 1000)
            if (place, True) in self._met and join.place is not None:
                self._record(join, at)  # after what is assumed
                join = _as_waiting(join)
            else:
                self._use(join, at)
            found.append(join)
            if not len(found) % AT_ONCE:
                await asyncio.sleep(0)
        if delays:
            self._delays.extend(delays)
            self._delayed(delays)
        return found

    def _result(
        self, own: bytes, label: Label, place: Place | None, rules: Rules
    ) -> tuple[Result, Place | None]:
        """Return what becomes of a label, and the question that is learned with it.

        Args:
            own: hash of the id.
            label: its label.
            place: the question of that id, if it is known.
            rules: of the model.
        """
        joins = self.joins
        if self._sums:
            return self._sum(own, label, place), None
        if place is None:
            if (waits := joins.waiting.get(own)) is not None:
                if waits.label == label:
                    return Result.DUPLICATE, None
                return (Result.WAITING if self._learns_last else Result.CONFLICT), None
            return (Result.WAITING if self._may_wait else Result.UNKNOWN), None
        if place.entry < joins.closed:
            return Result.LATE, None
        if place not in joins.used:
            return Result.JOINED, place
        if joins.used[place] == label:
            return Result.DUPLICATE, None
        if self._is_weighted and joins.used[place] == self._negative(rules):
            return Result.CORRECTED, place
        return Result.CONFLICT, place if self._learns_last else None

    def _sum(self, own: bytes, label: Label, place: Place | None) -> Result:
        """Return what becomes of a label that is added to the others of its id."""
        waits, joins = self.joins.waiting.get(own), self.joins
        if place is not None and (
            place in joins.used or place.entry < max(joins.closed, self._index.oldest_waiting)
        ):
            return Result.LATE
        try:
            added(0.0 if waits is None else waits.label, label)
        except InvalidBatchError as error:
            logger.info("a label is not added to those of its id: %s", error)
            return Result.INVALID
        if place is not None or waits is not None:
            return Result.ADDED
        return Result.WAITING if self._may_wait else Result.UNKNOWN

    @property
    def _may_wait(self) -> bool:
        """True if one more label may wait for its question."""
        return bool(self._grace) and len(self._alone) < MOST_WAITING

    def _superseded_by(self, place: Place, label: Label) -> Place | None:
        """Return a question if it is about to be recorded with a label that this one supersedes.

        That is one that has timed out, or where the last label counts one that had waited.
        """
        if not self._met or self._sums or self._is_weighted or (place, False) not in self._met:
            return None
        earlier = self._met[place, False][0]
        may = self._learns_last or earlier.result == Result.TIMEOUT
        return place if may and earlier.label != label else None

    def _supersede(self, join: Join, at: Position) -> Join:
        """Let a question be recorded with another label, which is recorded as waiting before."""
        assert join.place is not None, "it has a question"
        self._met[join.place, False] = join, at
        self.joins.used[join.place] = join.label
        return _as_waiting(join)

    def _use(self, join: Join, at: Position = BEGINNING) -> None:
        if join.place is not None and join.place not in self.joins.used:
            self._index.use(join.place)
        self.joins.note(join, self.now, at)
        if join.result == Result.WAITING:
            self._alone[join.hash] = None
        elif join.hash not in self.joins.waiting:
            self._alone.pop(join.hash, None)

    def _learnable(self, join: Join, questions: Mapping[EntryId, Questions], rules: Rules) -> Join:
        """Return a label with its question, or why that cannot be learned."""
        assert join.place is not None, "it has a question"
        own = questions.get(join.place.entry)
        if own is None or own.hash_of(join.place.row) != join.hash:
            return join._replace(result=Result.UNKNOWN, place=None)
        if self._is_weighted and (negative := self._negative(rules)) is not None:
            factor = importance(join.result, own, join.place.row, negative, rules)
            join = join._replace(factor=factor)
        try:
            return with_example(join, own, rules, is_new=True)
        except InvalidBatchError as error:
            logger.info("question %s cannot be learned with its label: %s", join.place, error)
            return join._replace(result=Result.INVALID, place=None)

    async def _fetch(
        self, log: Recording, entries: Collection[EntryId], shape: Shape | None
    ) -> dict[EntryId, Questions]:
        """Return the questions of entries; those that are gone or damaged are missing."""
        found = {entry: self._cache[entry][0] for entry in entries if entry in self._cache}
        missing = sorted(set(entries) - found.keys())
        for entry, fields in zip(missing, await log.questions(missing), strict=True):
            if not fields:
                continue
            try:
                found[entry] = questions = read_questions(fields, shape)
            except InvalidBatchError as error:
                self._note_damage(entry, str(error))
                continue
            size = sum(map(len, fields.values()))
            self._cache[entry] = questions, size
            self._cached += size
        for entry in entries:
            if entry in self._cache:
                self._cache.move_to_end(entry)
        while self._cached > CACHED:
            _, (_, size) = self._cache.popitem(last=False)
            self._cached -= size
        return found

    def _note_damage(self, entry: EntryId, why: str) -> None:
        self._damaged += 1
        logger.error("the questions of entry %s have no labels: %s", entry, why)

    def take(self, position: Position, most: int) -> list[Join]:
        """Return labels that have waited and met their questions, to be recorded at a position.

        Args:
            position: labels that lie before it are recorded as waiting.
            most: of them.
        """
        found = (join for join, at in self._met.values() if not at.is_after(position))
        taken = [*itertools.islice(found, most)]
        for join in taken:
            if join.place is not None:
                del self._met[join.place, join.result == Result.ASSUMED]
        self.met_since = self._clock.monotonic() if self._met else None
        return taken

    def tidied(self, here: Cut, pending: Pending, is_read: bool) -> Cut | None:
        """Close old questions, and those that take too many bytes; give up on old labels.

        Args:
            here: a cut that does not move the position: labels before it are recorded.
            pending: the entries after it; questions that their labels have met stay open.
            is_read: whether all entries of the log were read when its time was last looked at.
                Otherwise the time of nothing is over, so that no label that came in time is
                refused.

        Returns:
            The cut that records this; None if nothing has changed.
        """
        given_up = self._give_up(here.position) if is_read and not self._is_behind else []
        closed, index = None, self._index
        is_over = is_read and self.now - self._closed_at >= self._ttl // STEPS
        is_full = index.bytes > self.most_bytes
        evicted = 0
        if is_over or is_full:
            met = min((place.entry for place, _ in self._met), default=TOP)
            first = min(met, pending.oldest_question)
            if self._sums:
                first = min(first, index.oldest_waiting)
            if is_over:
                last = self.now - self._ttl
                closed = index.close(lambda known: known.at <= last and known.id < first)
                if not index.has_more:
                    self._closed_at = self.now
            if is_full:
                before, had = index.open, index.bytes
                early = index.close(
                    lambda known: index.bytes > self.most_bytes and known.id < first
                )
                closed, evicted = early or closed, before - index.open
                self.evicted_bytes += had - index.bytes
            index.forget(self.now - KNOWN * self._ttl, self.most_bytes)
        if closed is not None:
            self.joins.close(closed)
        elif not given_up:
            return None
        closing = ORIGIN if closed is None else closed
        repeats, index.repeated = index.repeated, []
        cut = replace(here, unknown=given_up, closed=closing, evicted=evicted, now=self.now)
        return replace(cut, repeats=repeats)

    def _give_up(self, position: Position) -> list[bytes]:
        """Let old labels wait no longer; return the hashes of their ids."""
        given_up = []
        for own in self._alone:
            waits = self.joins.waiting[own]
            if waits.since + self._grace > self.now:
                break
            if not waits.at.is_after(position):
                given_up.append(own)
        self.joins.give_up(given_up)
        for own in given_up:
            del self._alone[own]
        return given_up

    async def repeat(
        self, log: Recording, number: int, cut: Cut, pending: Pending, rules: Rules
    ) -> Cut:
        """Read again what a recorded cut has joined.

        Args:
            log: with the entries and the questions.
            number: of the cut.
            cut: as recorded.
            pending: the entries of the cut; it takes the decisions on their labels.
            rules: of the model.

        Returns:
            The cut with examples.

        Raises:
            GapError: a question is gone.
            LogError: a question or a label is not what was recorded.
        """
        joins = [join for own in cut.joins.values() for join in own]
        places = [join.place for join in (*joins, *cut.met) if join.place is not None]
        questions = await self._fetch(log, {place.entry for place in places}, rules.shape)
        for place in places:
            if place.entry not in questions:
                raise GapError(
                    f"cut {number} is not applied yet, and entry {place.entry} of the questions "
                    "that it learns is gone or damaged"
                )
        try:
            for entry, own in cut.joins.items():
                found = pending.labels_of(entry)
                if found is None or found.labels is None:
                    raise KeyError(entry)
                weights = found.labels.weights or (1.0,) * len(found.labels)
                each = zip(own, found.labels.hashes, found.labels.labels, weights, strict=False)
                repeated = [
                    join._replace(hash=h, label=label, weight=w, source=found.source)
                    for join, h, label, w in each
                ]
                pending.decide(entry, [again(join, questions, rules) for join in repeated])
            met = [again(join, questions, rules) for join in cut.met]
        except (KeyError, IndexError, InvalidBatchError) as error:
            how = f"cut {number} has joined labels that are not there: {error!r}"
            raise damaged(how, log.keys.log, log.keys.cuts) from error
        return replace(cut, met=tuple(met))


def _as_waiting(join: Join) -> Join:
    """Return the record of a label that is recorded as met later."""
    return join._replace(result=Result.WAITING, place=None, factor=1.0, example=None, is_right=None)
