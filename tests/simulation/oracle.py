"""The oracle: it folds the recorded cuts over the entries, straight, and says what is right.

It knows nothing of replicas, replay, checkpoints or decoding: it knows what each entry meant when
it was sent. Where others deleted entries, a trainer may or may not have read them in time: then
several folds may be right, and the oracle keeps them all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, combinations

from service.log.cuts import Begin, Change, Cut, Gap, Upgrade
from service.log.keys import Inputs
from service.log.position import BEGINNING, EntryId, Position
from service.trainer.checkpoint import Checkpoint
from tests.simulation.chain import link
from tests.simulation.joins import Joined, Label, Rules, Seen, UnjoinedError

MAX_GUESSES = 6
"""Most deleted entries in one cut for which every combination is tried."""


class ViolationError(AssertionError):
    """A promise is broken."""


@dataclass(frozen=True)
class Sent:
    """What an entry means: numbers of its examples, or none if it is poison."""

    numbers: tuple[int, ...] | None
    source: str = "redis"
    is_bad: bool = False
    """Whether batches with it are skipped."""
    labels: tuple[Label, ...] | None = None
    """Labels of questions, if it holds these."""
    kind: str = ""
    """What it holds, as `service.log.log.Log.claim` has it; nothing if the plan has chosen that."""

    def fits(self, claimed: str) -> bool:
        """Return whether a model learns it that begins as its log is claimed.

        Whole numbers are numbers, too, and any label of a row may be a class.
        """
        numbers = {Inputs.FEATURES: "features:numbers", "rows:numbers": Inputs.ROWS}
        return self.kind in ("", claimed) or numbers.get(self.kind) == claimed


@dataclass(frozen=True, eq=False)
class Folded:
    """The fold of the log up to a cut."""

    before: "Folded | None" = None
    cut: int = 0
    position: Position = BEGINNING
    entries: int = 0
    version: int = 0
    examples: int = 0
    dead: int = 0
    http: int = 0
    redis: int = 0
    digest: bytes = bytes(32)
    lr: float = 0.0
    numbers: tuple[int, ...] = ()
    """Of the examples of this cut's batch."""
    is_skipped: bool = False
    letters: tuple[EntryId, ...] = ()
    """Entries that this cut discards."""
    joined: Joined = field(default_factory=Joined)
    """What is decided on labels of questions."""

    def history(self) -> Iterator["Folded"]:
        """Return this fold and those before it, back to the beginning."""
        one: Folded | None = self
        while one is not None:
            yield one
            one = one.before

    def agrees(self, copy: Checkpoint) -> bool:
        """Return whether a checkpoint says the same of counts and positions."""
        at = copy.progress
        return (
            (self.cut, self.position, self.entries) == (at.cut, at.position, at.entries)
            and (self.dead, self.http, self.redis) == (at.dead, at.http, at.redis)
            and (self.version, self.examples) == (copy.version, copy.examples)
        )


@dataclass
class Oracle:
    """The folds that may be right."""

    tips: list[Folded] = field(default_factory=lambda: [Folded()])
    """After the last recorded cut."""
    by_digest: dict[bytes, list[Folded]] = field(default_factory=dict)
    """All that ever were right."""
    seen: Seen = field(default_factory=Seen)
    """Questions and labels."""
    rules: Rules = field(default_factory=Rules)
    """The settings of labels."""

    def __post_init__(self) -> None:
        self._know(self.tips)

    def _know(self, folds: list[Folded]) -> None:
        for one in folds:
            self.by_digest.setdefault(one.digest, []).append(one)

    def record(
        self,
        number: int,
        cut: Cut,
        entries: dict[EntryId, Sent],
        deleted: set[EntryId],
        digest: bytes,
        is_loose: bool,
    ) -> None:
        """Follow a cut that was recorded.

        Args:
            number: of the cut.
            cut: itself.
            entries: all that were ever added to this log.
            deleted: those of them that others than trainers deleted.
            digest: of the state of the process that recorded it.
            is_loose: whether the server may have lost cuts.

        Raises:
            ViolationError: it is not a cut that a trainer may make here.
        """
        bases = self.tips
        if isinstance(cut.command, Gap):
            bases = self.by_digest.get(digest, [])
            if not bases:
                raise ViolationError("a gap was accepted by a state that is no fold of the log")
            moved = {"position": cut.position, "entries": cut.entries}
            after = [
                replace(b, before=b, cut=number, numbers=(), letters=(), is_skipped=False, **moved)
                for b in bases
            ]
        else:
            if is_loose:
                known = chain.from_iterable(self.by_digest.values())
                bases = [f for f in known if f.cut == number - 1]
            else:
                bases = [f for f in bases if f.cut == number - 1]
            if not bases:
                raise ViolationError(f"cut {number} was recorded after cut {self.tips[0].cut}")
            take = partial(_take, seen=self.seen, rules=self.rules)
            after = [f for b in bases for f in _continue(b, number, cut, entries, deleted, take)]
        if not after:
            raise ViolationError(
                f"cut {number} does not follow from the log: {cut} after cut {bases[0].cut} at "
                f"{bases[0].position} with {bases[0].entries} entries"
            )
        self.tips = after
        self._know(after)

    def forget(self) -> None:
        """Let a fold begin again: the log was emptied, and no process may know of it."""
        self.tips = [*self.tips, Folded()]

    def check_step(self, digest: bytes, version: int) -> None:
        """Check a state after a step.

        Raises:
            ViolationError: no recorded cut gives this state.
        """
        if digest not in self.by_digest:
            raise ViolationError(f"version {version} was learned from no recorded cut")

    def check_checkpoint(self, copy: Checkpoint) -> Folded:
        """Return the fold that a checkpoint holds.

        Raises:
            ViolationError: it holds none.
        """
        digest = copy.tensors["chain"].numpy().tobytes()
        for one in self.by_digest.get(digest, ()):
            if one.agrees(copy):
                return one
        raise ViolationError(f"a checkpoint at {copy.progress} is no fold of the log")


Take = Callable[[Folded, int, Cut, dict[EntryId, Sent], list[EntryId]], Folded | None]


def _continue(
    base: Folded,
    number: int,
    cut: Cut,
    entries: dict[EntryId, Sent],
    deleted: set[EntryId],
    take: Take,
) -> Iterator[Folded]:
    """Yield the folds after a cut, one for each set of deleted entries that were read in time."""
    begin, end = base.position, cut.position
    if not (begin.entry, begin.taken is None, begin.taken) <= (
        end.entry, end.taken is None, end.taken
    ):  # fmt: skip
        return
    passed = [e for e in entries if begin.entry < e <= end.entry]
    if begin.taken is not None and begin.entry in entries:
        passed.insert(0, begin.entry)
    doubtful = [e for e in passed if e in deleted]
    sets: Iterator[tuple[EntryId, ...]]
    if len(doubtful) <= MAX_GUESSES:
        sets = chain.from_iterable(combinations(doubtful, k) for k in range(len(doubtful) + 1))
    else:
        sets = iter([tuple(doubtful[k:]) for k in range(len(doubtful) + 1)] + [tuple(doubtful)])
    for unread in sets:
        read = [e for e in passed if e not in unread]
        if (after := take(base, number, cut, entries, read)) is not None:
            yield after


def _take(
    base: Folded,
    number: int,
    cut: Cut,
    entries: dict[EntryId, Sent],
    read: list[EntryId],
    seen: Seen,
    rules: Rules,
) -> Folded | None:
    """Return the fold after a cut that passes these entries, or None if it does not agree.

    Raises:
        ViolationError: labels are joined wrongly.
    """
    begun = base.position
    parts = {
        entry: (
            labels[(begun.taken or 0) if entry == begun.entry else 0 :][
                : len(cut.joins.get(entry, ())) if entry == cut.position.entry else None
            ],
            entries[entry].source,
        )
        for entry in read
        if (labels := entries[entry].labels) is not None
    }
    try:
        joined, learned, met = base.joined.after(cut, parts, seen, rules)
    except UnjoinedError as error:
        raise ViolationError(f"cut {number}: {error}") from error
    numbers: list[int] = []
    dead: list[EntryId] = []
    sources = {"http": 0, "redis": 0, "timeout": 0, "assumed": 0}
    whole, is_bad = 0, False
    for entry in read:
        sent = entries[entry]
        is_whole = entry != cut.position.entry or cut.position.taken is None
        whole += is_whole
        if sent.numbers is None:
            dead += [entry] * is_whole
            continue
        first = (base.position.taken or 0) if entry == base.position.entry else 0
        last = cut.position.taken if entry == cut.position.entry else None
        part = [*sent.numbers[first:last], *learned.get(entry, ())]
        numbers += part
        sources[sent.source] += len(part)
        is_bad = is_bad or (sent.is_bad and bool(part))
    for own, source in met:
        numbers.append(own)
        sources[source] += 1
    same = (
        len(numbers) == cut.examples
        and base.entries + whole == cut.entries
        and list(cut.dead) == dead
        and {k: n for k, n in sources.items() if n} == dict(cut.sources)
    )
    if not same:
        return None
    digest, version, lr = base.digest, base.version, base.lr
    if numbers:
        weights = [rules.weight_of(number) for number in numbers]
        digest, version = link(digest, numbers, is_bad, cut.fold, lr, weights), version + 1
    match cut.command:
        case Begin(_, rates) | Change(rates):
            lr = rates["lr"]
        case Upgrade():
            pass
    return Folded(
        base, number, cut.position, cut.entries, version, base.examples + len(numbers),
        base.dead + len(dead), base.http + sources["http"], base.redis + sources["redis"],
        digest, lr, tuple(numbers), is_bad and bool(numbers), tuple(dead), joined,
    )  # fmt: skip
