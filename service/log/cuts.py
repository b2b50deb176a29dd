"""Cuts: the trainer's recorded decisions, and the entries that wait to be cut.

A cut records where a batch ends and which entries before that are dead: replay discards the same
entries, even if a later reader could decode them. It records which question each label met, too. A
cut may also carry a command.
"""

from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, Literal
from zlib import crc32

import orjson
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from service.log.entries import Entry, Fields, is_damaged
from service.log.errors import CutError, DamagedCutError, LogError
from service.log.keys import Field
from service.log.labels import Join, Label, Place, Result
from service.log.position import ORIGIN, TOP, EntryId, Position
from streams.examples import AnyBatch, joined
from streams.rows.rows import Rows, merged

GAP = '{"gap": true}'
"""The text of `Gap`; its bytes may not change."""
CUT = Field.CUT.encode()


@dataclass(frozen=True)
class Begin:
    """The model begins, with this spec and these hyperparameters, as JSON shows them."""

    spec: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """The model continues with other hyperparameters."""

    hyperparameters: Mapping[str, Any]


@dataclass(frozen=True)
class Gap:
    """The operator accepted that entries are missing; the cut's position is after them."""


@dataclass(frozen=True)
class Upgrade:
    """Later cuts are learned by this version of the fold."""

    fold: int
    refused: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """A spec that no model has, for the record alone. Funnel 0.1.0 knows no upgrades and would
    replay later cuts with its own arithmetic, but it compares every spec and halts."""


@dataclass(frozen=True)
class Reshape:
    """The schema of rows grows: columns, kinds or labels that the next batch needs."""

    changes: Sequence[Mapping[str, Any]]
    """As `service.fold.schema.changes` writes them."""


@dataclass(frozen=True)
class Order:
    """A command that an operator gives."""

    by: str
    """Name of the key with which it was given; ``anonymous`` without keys."""
    at: int
    """When it was given, in Unix milliseconds."""


class Pause(Order):
    """No batch is cut after this until learning is resumed; examples wait in the log."""


class Resume(Order):
    """Learning goes on after a pause."""


@dataclass(frozen=True)
class Promote(Order):
    """Another learner answers predictions from now on; the one that did becomes a shadow."""

    learner: str
    """Name of the shadow, or ``original`` for the learner with which the model began."""


@dataclass(frozen=True)
class Rebuild(Order):
    """The model goes on from another state: without some examples, or as it was before.

    ``model_version`` is the number of the cut from then on.
    """

    rule: str
    """Which examples it is without, as JSON (see `service.trainer.archive.rules`)."""
    file: str
    """Name of the file in the archive that holds the state; its SHA-256 is in the name."""


ORDERS: dict[str, type[Order]] = {
    "pause": Pause,
    "resume": Resume,
    "promote": Promote,
    "rebuild": Rebuild,
}
"""The commands of operators, by their names."""


@dataclass(frozen=True)
class Ordered:
    """A command of an operator that was recorded."""

    cut: int
    """Number of the cut that carries it."""
    order: Order

    @property
    def name(self) -> str:
        """Its name in ORDERS."""
        return name_of(self.order)

    def to_json(self) -> list[object]:
        """Return what a checkpoint keeps."""
        return [self.cut, self.name, *astuple(self.order)]

    @classmethod
    def from_json(cls, found: Sequence[Any]) -> "Ordered":
        """Return the command that a checkpoint kept.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        cut, name, by, at, *more = found
        return cls(int(cut), ORDERS[name](str(by), int(at), *map(str, more)))


def name_of(order: Order) -> str:
    """Return the name of a command of an operator."""
    return next(name for name, kind in ORDERS.items() if isinstance(order, kind))


def pause_of(commands: Sequence[Ordered]) -> Ordered | None:
    """Return the command that pauses learning after some commands; None if none does."""
    found = (one for one in reversed(commands) if isinstance(one.order, Pause | Resume))
    newest = next(found, None)
    return newest if newest is not None and isinstance(newest.order, Pause) else None


Command = Begin | Change | Gap | Upgrade | Reshape | Order


class _Record(BaseModel):
    """A cut as it is recorded."""

    model_config = ConfigDict(strict=True)

    position: str
    examples: NonNegativeInt
    entries: NonNegativeInt
    dead: list[str]
    command: str
    sources: dict[str, NonNegativeInt]
    fold: int = 1
    effort: Literal["full", "fast"] = "full"
    joins: dict[str, list[str | list[Any]]] = {}
    met: list[list[Any]] = []
    unknown: list[str] = []
    closed: str = str(ORIGIN)
    repeats: list[tuple[str, int, str, int]] = []
    evicted: NonNegativeInt = 0
    now: NonNegativeInt = 0


@dataclass(frozen=True)
class Cut:
    """A decision of the trainer, recorded before it is carried out."""

    position: Position
    """The position at which it ends."""
    examples: int = 0
    """Examples of the batch; 0 if the cut only moves the position, or carries a command."""
    entries: int = 0
    """Entries that lie wholly before the position, since the log began."""
    dead: Mapping[EntryId, str] = field(default_factory=dict)
    """Entries discarded since the previous cut, in order, and why they cannot be learned."""
    command: Command | None = None
    """Carried out after the batch."""
    sources: Mapping[str, int] = field(default_factory=dict)
    """Examples of the batch by source."""
    fold: int = 1
    """Version of the fold that learned the batch."""
    is_fast: bool = False
    """True if the families that cost most skip the batch (`service.fold.step.Fold.step`)."""
    joins: Mapping[EntryId, Sequence[Join]] = field(default_factory=dict)
    """By entry with labels of questions, what became of those of its labels that lie between the
    previous cut and this one, in order."""
    met: Sequence[Join] = ()
    """Labels that had waited for their questions, and have met them, or that questions got when
    their time was over, or at once; their examples come last in the batch."""
    unknown: Sequence[bytes] = ()
    """Hashes of the ids of labels that have waited in vain."""
    closed: EntryId = ORIGIN
    """Questions before this entry of theirs are closed from now on; ORIGIN closes none."""
    evicted: int = 0
    """Questions without a label among those, which were closed before their time."""
    now: int = 0
    """Time of the log at which labels were joined or questions closed, in Unix milliseconds; 0 if
    none were."""
    repeats: Sequence[tuple[Place, Place]] = ()
    """Questions with a label that are closed from now on, and later ones with the same id that were
    asked meanwhile, which have that label, too, and are not learned."""

    def to_json(self) -> str:
        """Return the text that is recorded."""
        more: dict[str, object] = {
            "joins": {str(entry): list(map(_join, own)) for entry, own in self.joins.items()},
            "met": list(map(_met, self.met)),
            "unknown": [own.hex() for own in self.unknown],
            "closed": "" if self.closed == ORIGIN else str(self.closed),
            "repeats": [[str(a.entry), a.row, str(b.entry), b.row] for a, b in self.repeats],
            "evicted": self.evicted,
            "now": self.now,
            "effort": "fast" if self.is_fast else "",
        }
        return orjson.dumps(
            {
                "position": str(self.position),
                "examples": self.examples,
                "entries": self.entries,
                "dead": list(map(str, self.dead)),
                "command": _encode(self.command),
                "sources": dict(self.sources),
                "fold": self.fold,
            }
            | {name: value for name, value in more.items() if value}
        ).decode()

    @classmethod
    def from_json(cls, number: int, raw: bytes) -> "Cut":
        """Return the cut that was recorded under a number; reasons of dead entries are not in it.

        Raises:
            CutError: the bytes are no cut.
            LogError: this version does not know its command.
        """
        try:
            found = _Record.model_validate_json(raw)
            return cls(
                Position.parse(found.position),
                found.examples,
                found.entries,
                dict.fromkeys(map(EntryId.parse, found.dead), ""),
                _decode(number, found.command),
                found.sources,
                found.fold,
                found.effort == "fast",
                {EntryId.parse(e): tuple(map(_read_join, own)) for e, own in found.joins.items()},
                tuple(_read_met(*one) for one in found.met),
                tuple(map(bytes.fromhex, found.unknown)),
                EntryId.parse(found.closed),
                found.evicted,
                found.now,
                tuple(_read_repeat(*one) for one in found.repeats),
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CutError(f"{where}: {first['msg']}" if where else first["msg"]) from error
        except (ValueError, TypeError) as error:
            raise CutError(str(error)) from error


def _join(join: Join) -> str | list[object]:
    """Return the record of a label: its result, or the question that is learned with it."""
    if join.place is None:
        return str(join.result)
    factor = [] if join.factor == 1.0 else [join.factor]
    return _place(join) + ([] if join.result == Result.JOINED else [str(join.result), *factor])


def _place(join: Join) -> list[object]:
    assert join.place is not None, "only a label that is learned has a question"
    return [str(join.place.entry), join.place.row]


def _read_join(record: str | list[Any]) -> Join:
    if isinstance(record, str):
        return Join(Result(record))
    entry, row, *rest = record
    place, result = Place(EntryId.parse(entry), int(row)), rest[0] if rest else Result.JOINED
    return Join(Result(result), place, factor=float(rest[1]) if rest[1:] else 1.0)


def _read_repeat(closed: str, row: int, entry: str, own: int) -> tuple[Place, Place]:
    return Place(EntryId.parse(closed), row), Place(EntryId.parse(entry), own)


def _met(join: Join) -> list[object]:
    end = [] if join.result == Result.JOINED else [str(join.result)]
    return [*_place(join), join.label, join.weight * join.factor, *end]


def _read_met(
    entry: str, row: int, label: Label, weight: float, result: str = Result.JOINED
) -> Join:
    place = Place(EntryId.parse(entry), int(row))
    return Join(Result(result), place, label=label, weight=float(weight))


def checksum(text: str) -> str:
    """Return the CRC-32 of a cut's text, as it is recorded."""
    return str(crc32(text.encode()))


def read_cut(number: int, fields: Fields) -> Cut:
    """Return the cut in a record.

    Raises:
        CutError: the record is no cut.
        DamagedCutError: it does not match its checksum.
        LogError: this version does not know its command.
    """
    if CUT not in fields:
        raise CutError(f"it has no field 'cut', only {sorted(fields)[:4]}")
    if is_damaged(fields, CUT):
        raise DamagedCutError("its CRC-32 does not match")
    return Cut.from_json(number, fields[CUT])


def _encode(command: Command | None) -> str:
    match command:
        case None:
            return ""
        case Begin(spec, rates):
            content: dict[str, Any] = {"spec": spec, "rates": rates}
        case Change(rates):
            content = {"rates": rates}
        case Gap():
            return GAP
        case Reshape(changes):
            content = {"schema": list(changes)}
        case Order():
            content = {name_of(command): asdict(command)}
        case Upgrade(fold, refused):
            content = {"upgrade": {"fold": fold}} | ({"spec": refused} if refused else {})
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode()


def _decode(number: int, text: str) -> Command | None:
    match orjson.loads(text) if text else None:
        case None:
            return None
        case {"spec": spec, "rates": rates, **rest} if not rest:
            return Begin(spec, rates)
        case {"rates": rates, **rest} if not rest:
            return Change(rates)
        case {"gap": True, **rest} if not rest:
            return Gap()
        case {"schema": [*changes], **rest} if not rest:
            return Reshape(changes)
        case {"pause": {"by": str(by), "at": int(at)}, **rest} if not rest:
            return Pause(by, at)
        case {"resume": {"by": str(by), "at": int(at)}, **rest} if not rest:
            return Resume(by, at)
        case {"promote": {"by": str(by), "at": int(at), "learner": str(name)}, **rest} if not rest:
            return Promote(by, at, name)
        case {"rebuild": {"by": str(by), "at": int(at), "rule": str(rule), "file": str(file)}}:
            return Rebuild(by, at, rule, file)
        case {"upgrade": {"fold": int(fold)}, "spec": dict(refused), **rest} if not rest:
            return Upgrade(fold, refused)
        case {"upgrade": {"fold": int(fold)}, **rest} if not rest:
            return Upgrade(fold)
    raise LogError(
        f"cut {number} carries a command that this version does not know: {text[:200]}. Run the "
        "version that recorded it until it has written a checkpoint, then upgrade"
    )


class Pending:
    """Entries read but not yet cut, in log order; batches are taken off their front.

    Args:
        position: where the last cut ended.
        entries: its count of entries.
    """

    def __init__(self, position: Position, entries: int) -> None:
        self.position, self.entries = position, entries
        self.examples = 0
        """Examples waiting to be cut."""
        self._queue: deque[Entry] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def newest(self) -> EntryId:
        """Id of the last entry that was read."""
        return self._queue[-1].id if self._queue else self.position.entry

    @property
    def seen(self) -> int:
        """Entries up to and including `newest`, since the log began."""
        in_part = not self._queue and self.position.taken is not None
        return self.entries + len(self._queue) + in_part

    def count(self, last: EntryId) -> int:
        """Return the number of entries up to an id that was read, since the log began."""
        return self.entries + sum(entry.id <= last for entry in self._queue)

    @property
    def oldest(self) -> EntryId:
        """Id of the first entry that is not wholly cut; only while there is one."""
        return self._queue[0].id

    @property
    def reason(self) -> str:
        """Why the first entry has no examples; empty if it has. Only while there is one."""
        return self._queue[0].reason

    def add(self, entry: Entry) -> None:
        """Queue the next entry of the log."""
        if entry.joins is None:
            entry = self.rest(entry)
        self._queue.append(entry)
        self.examples += entry.examples

    def rest(self, entry: Entry) -> Entry:
        """Return what of an entry lies after the last cut."""
        if entry.id != self.position.entry:
            return entry
        return _after(entry, self.position.taken or 0)

    def decide(self, entry: EntryId, joins: Sequence[Join]) -> None:
        """Set what became of the first of the labels of an entry that was read.

        Raises:
            KeyError: there is no such entry, or it has fewer labels.
        """
        for k, own in enumerate(self._queue):
            if own.id == entry and own.labels is not None and len(own.labels) >= len(joins):
                self._queue[k] = decided(own, joins)
                self.examples += self._queue[k].examples - own.examples
                return
        raise KeyError(entry)

    @property
    def oldest_question(self) -> EntryId:
        """The oldest entry of questions that labels have met which are not cut; TOP without any."""
        joins = (join for entry in self._queue for join in entry.joins or ())
        return min((join.place.entry for join in joins if join.place is not None), default=TOP)

    def labels_of(self, entry: EntryId) -> Entry | None:
        """Return an entry that was read, if it holds labels of questions."""
        found = (one for one in self._queue if one.id == entry and one.labels is not None)
        return next(found, None)

    def take(
        self, size: int, recorded: Cut | None = None, skipped: Container[EntryId] = ()
    ) -> tuple[Cut, AnyBatch | None]:
        """Cut off up to ``size`` examples, with the dead entries before and right after them.

        Args:
            size: number of examples.
            recorded: the cut to repeat: the batch ends where that ends, and an entry is dead if
                that cut names it.
            skipped: entries whose examples count, and are not in the batch.
        """
        parts: list[AnyBatch] = []
        joins: dict[EntryId, Sequence[Join]] = {}
        dead: dict[EntryId, str] = {}
        sources: dict[str, int] = {}
        left = size
        while self._queue and (recorded is None or self.position != recorded.position):
            entry = self._queue[0]
            if entry.joins is not None:
                taken = _taken(entry.joins, left if recorded is None else self.examples)
                if not taken:
                    break
                found = [join.example for join in taken if join.example is not None]
                parts += [] if entry.id in skipped else found
                left -= len(found)
                joins[entry.id] = taken
                if found:
                    sources[entry.source] = sources.get(entry.source, 0) + len(found)
                self._pass_labels(entry, taken)
                continue
            is_dead = recorded is not None and entry.id in recorded.dead
            if entry.labels is not None and not is_dead:
                break  # what becomes of them is not decided
            if entry.batch is None if recorded is None else entry.id in recorded.dead:
                dead[entry.id] = entry.reason
                self._pass(entry)
                continue
            if left == 0 or entry.batch is None:
                break
            n = min(left, entry.examples)
            if entry.id not in skipped:
                parts.append(entry.batch.part(0, n))
            sources[entry.source] = sources.get(entry.source, 0) + n
            left -= n
            if n == entry.examples:
                self._pass(entry)
            else:
                self.examples -= n
                self._queue[0] = _after(entry, n)
                before = self.position.taken if self.position.entry == entry.id else 0
                self.position = Position(entry.id, (before or 0) + n)
        cut = Cut(self.position, size - left, self.entries, dead, sources=sources, joins=joins)
        if not parts:
            return cut, None
        batch = joined(parts)
        return cut, merged(batch) if joins and isinstance(batch, Rows) else batch

    def _pass_labels(self, entry: Entry, taken: Sequence[Join]) -> None:
        """Move the position after the first labels of the first entry."""
        assert entry.labels is not None, "it has labels"
        if len(taken) == len(entry.labels):
            self._pass(entry)
            return
        before = self.position.taken if self.position.entry == entry.id else 0
        rest = entry._replace(labels=entry.labels.after(len(taken)), joins=None, examples=0)
        if later := (entry.joins or ())[len(taken) :]:
            rest = decided(rest, later)
        self.examples += rest.examples - entry.examples
        self._queue[0] = rest
        self.position = Position(entry.id, (before or 0) + len(taken))

    def _pass(self, entry: Entry) -> None:
        self._queue.popleft()
        self.examples -= entry.examples
        self.position = Position(entry.id)
        self.entries += 1


def decided(entry: Entry, joins: Sequence[Join]) -> Entry:
    """Return an entry of labels with what became of the first of them."""
    return entry._replace(joins=tuple(joins), examples=sum(j.example is not None for j in joins))


def _taken(joins: Sequence[Join], left: int) -> Sequence[Join]:
    """Return the first joins, with at most so many examples, and the results right after them."""
    for k, join in enumerate(joins):
        if join.example is not None:
            if not left:
                return joins[:k]
            left -= 1
    return joins


def _after(entry: Entry, taken: int) -> Entry:
    """Return an entry without its first examples or labels."""
    if entry.labels is not None:
        return entry._replace(labels=entry.labels.after(taken))
    if entry.batch is None:
        return entry
    rest = entry.batch.part(taken, entry.examples)
    return entry._replace(batch=rest, examples=len(rest))
