"""The model at its position in the log: it reads entries, records and applies cuts, and recovers.

A replica does not decide where a batch ends; its pipeline does.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Container, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import orjson

from service.fold.report import Report
from service.fold.schema.changes import Change as SchemaChange
from service.fold.schema.changes import from_json, to_json
from service.fold.schema.schema import POLICIES, Schema
from service.fold.spec import FOLD_VERSION, UNSET, Hyperparameters, Spec
from service.fold.state import State
from service.fold.step import Fold
from service.log.cuts import (
    Begin,
    Change,
    Command,
    Cut,
    Gap,
    Ordered,
    Pending,
    Promote,
    Rebuild,
    Reshape,
    Upgrade,
)
from service.log.entries import Entry, Fields, RawEntry, read_entry
from service.log.errors import BlankError, ForeignError, GapError, LogError, LogFullError, damaged
from service.log.extent import Extent, check_reach
from service.log.labels import Join
from service.log.log import COUNTED_AT_ONCE, Log, Recording, drop_from
from service.log.position import ORIGIN, TOP, EntryId, Position, Progress
from service.process import Clock
from service.trainer.checkpoint import Checkpoint
from service.trainer.choice import check_spec, is_unclaimed
from service.trainer.joining.examples import Rules, batch_of
from service.trainer.joining.joiner import Joiner
from service.trainer.joining.joins import Joins
from service.trainer.orders import after
from service.trainer.store import CheckpointStore
from streams.batch import InvalidBatchError
from streams.examples import AnyBatch, joined
from streams.rows.rows import Rows

logger = logging.getLogger("funnel")

READ_BYTES = 4 << 20
READ_ENTRIES = 100
"""Limits of one read of the log; the last entry may exceed the bytes."""
READ_LABELS = 65_536
"""Labels of one read after which its rest is left to the next; the last entry may exceed them."""

READ_QUESTIONS = 100_000
"""Questions after which the rest of them is left to the next look."""
WARN_SECONDS = 10.0
"""Time between warnings of entries that are discarded."""
REST_SECONDS = 0.5
"""Longest wait until labels are joined; after it, a look at the questions is skipped."""

TakeEpoch = Callable[[Log, int], Awaitable[int]]
"""Returns a new epoch above a given one, and fences off every trainer of an earlier one."""
KeepLease = Callable[[], Awaitable[None]]
"""Called between the parts of long work. It raises FencedError if another process may have the
lease, and Stopped if the work is to end."""


class Skips(Protocol):
    """The examples that a replay skips."""

    is_dry: bool
    """True if nothing is learned at all."""

    def note(self, entry: EntryId, fields: Fields) -> None:
        """Look at an entry that was read."""

    def of(self, number: int) -> Container[EntryId]:
        """Return the entries whose examples a cut is without."""

    def counted(self, batch: AnyBatch | None, examples: int) -> None:
        """Count the batch of a cut that had so many examples."""


@dataclass(frozen=True)
class AppliedBatch:
    """A batch that was applied."""

    begin: Position
    end: Position
    report: Report
    seconds: float
    """Time of the step on the host."""
    examples: int


class Replica:
    """A state and its progress, moved along the log by one thread at a time.

    Args:
        state: as built.
        observe: called after each batch, with the batch itself.
        clock: times the steps.
        declared: what the settings declare of the schema of rows; None for nothing.
        policies: the fields of POLICIES that they declare.
        opens: what the log may still choose (see `service.trainer.choice`).
        is_calibration_recorded: whether it is the log that says if probabilities are calibrated,
            once it has begun, and not the settings.
        joiner: decides which questions labels meet; None for one with the settings' defaults.
        became: called with what became of labels, by the entry that holds them.
        take_epoch: takes the log over, and whatever else only one trainer may write.
        rebuilt: returns the state that a command has put in place of another.
        skips: what a rebuild skips: then such commands do nothing.
    """

    def __init__(
        self,
        state: State,
        observe: Callable[[AppliedBatch, AnyBatch], None],
        clock: Clock,
        declared: Schema | None = None,
        policies: Collection[str] = POLICIES,
        opens: Collection[str] = (),
        is_calibration_recorded: bool = False,
        joiner: Joiner | None = None,
        became: Callable[[EntryId, Sequence[Join]], object] = lambda *_: None,
        take_epoch: TakeEpoch = lambda log, at_least: log.take_epoch(at_least),
        rebuilt: Callable[[Rebuild], Checkpoint] | None = None,
        skips: Skips | None = None,
    ) -> None:
        self._rebuilt, self._skips = rebuilt, skips
        self.joiner = joiner or Joiner(clock)
        self.joins = Joins()
        """The decisions of the applied cuts on labels of questions."""
        self.commands: tuple[Ordered, ...] = ()
        """The newest commands of operators in the applied cuts."""
        self._became, self._take_epoch = became, take_epoch
        self._is_calibration_recorded = is_calibration_recorded
        self.state, self._observe, self._clock = state, observe, clock
        self.progress = Progress()
        self._fold = Fold(state)
        self.mean_entry = self.mean_bytes = 0.0
        """Examples and bytes in an entry, on recent average; 0 before the first."""
        self.read_bytes = 0
        """Bytes of the entries that were read, in this process."""
        self.damaged_entries = 0
        """Entries whose checksum did not match, in this process."""
        self._newest_damaged = ORIGIN
        self._warns_from = -math.inf
        self.has_recovered = False
        """True once it is where the recorded cuts end, and may record more."""
        self._declared, self._policies = declared or state.schema, policies
        self.schema: Schema
        """The schema of rows for the next batch."""
        self._undecided: tuple[SchemaChange, ...]
        """Changes that are declared, and are recorded before the next batch."""
        self._take_schema()
        self._hyperparameters = state.hyperparameters
        """The hyperparameters of the settings; the log may still have others."""
        self._opens, self.is_open = opens, bool(opens)
        """True while the log may still make it another model."""
        self._is_loaded = False
        self._is_compared = False
        """True once the spec of the log's first cut is known to be its own, or that cut is gone."""
        self._epoch: int | None = None
        self._recorded = 0
        """Number of the last recorded cut, which may not be applied yet."""
        self._version = FOLD_VERSION
        """Version of the fold that learned the last batch."""

    @property
    def version(self) -> int:
        """Version of the fold that learned the last batch."""
        return self._version

    @property
    def recorded(self) -> int:
        """Number of the last recorded cut, which may not be applied yet."""
        return self._recorded

    @property
    def is_owner(self) -> bool:
        """True if it has taken an epoch, so that it may record cuts and write checkpoints."""
        return self._epoch is not None

    def resign(self) -> None:
        """Record no more cuts until the next `recover`."""
        self._epoch, self.has_recovered = None, False

    def load(self, checkpoints: CheckpointStore) -> bool:
        """Load the newest good checkpoint if it is further ahead; return whether there is one.

        Raises:
            DamagedError: there are checkpoints, but no good one.
            UnreadableError: they cannot be read, or not by this version.
            LogError: the newest is of another model.
        """
        newest = checkpoints.load()
        if newest is None:
            return False
        if newest.progress.cut <= self.progress.cut and self.progress.log:
            return True
        return self.follow(newest, checkpoints.place)

    def follow(self, newest: Checkpoint, place: str) -> bool:
        """Go on from what was read; return False if its model has learned nothing, and is another.

        Args:
            newest: the checkpoint.
            place: where it lies, for people.

        Raises:
            LogError: it is of another model; AnotherModelError if the own one may give way.
        """
        if newest.progress.cut == 0 and newest.spec != self.state.spec and not self.is_open:
            return False  # an open model wrote it, which had learned nothing
        self._check_spec(newest.spec, f"the checkpoint in {place}")
        self.is_open = self.is_open and newest.progress.cut == 0
        self.take(newest)
        return True

    def take(self, newest: Checkpoint) -> None:
        """Go on from a checkpoint of the same model, with all rows of its tables."""
        self.state.set_hyperparameters(newest.hyperparameters)
        counts = newest.version, newest.examples
        self.state.load(newest.tensors, *counts, newest.drifts, newest.byte_examples)
        self._take_schema()
        self.progress, self._version, self._is_loaded = newest.progress, newest.fold, True
        self.joins, self.commands = newest.joins.copy(), newest.commands

    async def compare(self, log: Log) -> None:
        """Compare its spec with the first cut of a log from which it has learned nothing yet.

        Raises:
            LogError: the log is of another model.
        """
        if self.progress.cut or self._is_compared:
            return
        if cuts := await log.cuts_after(0):
            command = cuts[0][1].command
            if isinstance(command, Begin):
                self._check_spec(Spec.of(dict(command.spec)), "the log")
            self._is_compared, self.is_open = True, False

    def _check_spec(self, spec: Spec, what: str) -> None:
        own = replace(self.state.spec, **{name: getattr(spec, name) for name in UNSET})
        if self._is_calibration_recorded:
            own = replace(own, calibrate=spec.calibrate)
        if self.state.spec != spec == own:
            self.state.begin_as(spec)
            self._fold = Fold(self.state)
        check_spec(self.state.spec, spec, what, self.is_open)

    def _replace(self, command: Rebuild, number: int) -> None:
        """Go on from the state that a command names.

        Raises:
            LogError: it is not there, or is another one.
        """
        if self._rebuilt is None:
            raise LogError(f"cut {number} goes on from {command.file}, which is in an archive")
        copy = self._rebuilt(command)
        if (copy.version, copy.spec) != (number, self.state.spec):
            raise LogError(f"cut {number} goes on from {command.file}, which is of another cut")
        self.state.set_hyperparameters(copy.hyperparameters)
        counts = copy.version, copy.examples
        self.state.load(copy.tensors, *counts, copy.drifts, copy.byte_examples)
        self._take_schema()

    @property
    def has_families(self) -> bool:
        """True if there are families that can skip batches."""
        return self.state.served.families is not None

    async def recover(self, log: Log, accept_gap: bool, keep_lease: KeepLease) -> Pending:
        """Check that the log reaches back, take it over, and apply every recorded cut.

        Args:
            log: the log as it is now.
            accept_gap: continue although entries are missing.
            keep_lease: called between the parts of the work.

        Returns:
            The entries that are pending after the last cut.

        Raises:
            GapError: the log does not reach back to the replica's position.
            BlankError: it does not reach back to its beginning, and nothing was learned yet.
            LogError: a recorded cut cannot be applied by this version.
            AnotherModelError: it is open, and the log is of another model.
        """
        extent = await log.extent()
        if self.is_open and not (await log.cut_range())[1]:
            found = await log.read(ORIGIN, READ_ENTRIES, READ_BYTES, None)
            self.is_open = await is_unclaimed(log, self.state.spec, self._opens, found)
        is_blank, accepted = self.progress.cut == 0 and not self._is_loaded, False
        if not self.progress.log:
            self.progress = Progress(extent.uuid)
        try:
            check_reach(extent, self.progress)
            first, last = await log.cut_range() if is_blank else (0, 0)
            if first > 1 or (last and not first):
                raise GapError("the first of the recorded cuts are gone")
            if accept_gap and not self.has_recovered:  # others notice when they have read them
                position = self.progress.position
                if position.taken is not None and await log.read_one(position.entry) is None:
                    raise GapError(f"entry {position.entry}, learned in part, is gone")
                waiting = await _count_after(log, position, extent.last, keep_lease)
                if missing := extent.added - self.progress.entries - waiting:
                    raise GapError(f"{missing} entries after {position} were deleted")
        except GapError as gap:
            _, cut = await log.cut_range() if is_blank else (0, 0)
            error = BlankError(cut) if cut else gap
            if self.has_recovered or not accept_gap:
                raise error from None
            await self._accept_gap(log, error, keep_lease)
            accepted = True
        await self._take_over(log)  # after a reconnection, too: another may have recorded cuts
        try:
            await self._catch_up(log, keep_lease)
        except GapError as gap:
            if self.has_recovered or not accept_gap:
                raise
            await self._accept_gap(log, gap, keep_lease)
            accepted = True
        self._enter_epoch()
        self.state.drift.set_version(FOLD_VERSION)
        self._recorded = self.progress.cut
        self._take_schema()
        if self._undecided and self.state.schema.columns:
            logger.warning(
                "the schema is declared otherwise, and changes before the next batch: %s",
                orjson.dumps(list(map(to_json, self._undecided))).decode(),
            )
        await log.forget_skipped(self.state.version)
        if self._version != FOLD_VERSION:
            logger.info("from now on version %d of the fold learns", FOLD_VERSION)
            model = f"{self.state.spec.model} (learned by a later version of Funnel: run that)"
            refused = self.state.spec.fields() | {"model": model}
            await self._carry_out(log, self._command_cut(Upgrade(FOLD_VERSION, refused)))
        begins_again = accepted and is_blank  # and the cut `Begin` may be gone
        if begins_again or self.state.hyperparameters != self._hyperparameters:
            change = Change(self._hyperparameters.fields())
            await self._carry_out(log, self._command_cut(change))
        self.joiner.begin(self.joins)
        self.joiner.look(extent.time)
        self.has_recovered = True
        return Pending(self.progress.position, self.progress.entries)

    async def _take_over(self, log: Log) -> None:
        """Take an epoch, so that no other trainer records a cut from now on."""
        self._epoch = await self._take_epoch(log, self.progress.epoch)

    def _enter_epoch(self) -> None:
        """Let checkpoints name the epoch from now on: no cut of an earlier one is still to come.

        Before that, a checkpoint of a replay that was interrupted would count as newer than one
        that lies further ahead in the log.
        """
        assert self._epoch is not None, "only an owner has an epoch"
        self.progress = replace(self.progress, epoch=self._epoch)

    async def _accept_gap(self, log: Log, gap: GapError, keep_lease: KeepLease) -> None:
        """Move to the first entry that the log still has and that is not learned; record that.

        The cuts that still have their entries are applied first: another replica that comes to the
        gap has applied them, too.
        """
        logger.warning("gap accepted: %s", gap.what)
        await self._take_over(log)
        extent, (first, last) = await log.extent(), await log.cut_range()
        if extent.uuid == self.progress.log and first <= self.progress.cut + 1:
            with contextlib.suppress(GapError):
                await self._replay(log, keep_lease)
        if extent.last == TOP:
            await log.archive()
        extent, at, (_, last) = await log.extent(), self.progress, await log.cut_range()
        cut = max(at.cut, last)
        if extent.uuid != at.log:  # all that it has is new
            position = Position(extent.first, 0) if extent.first else Position(extent.last)
            waiting = extent.length
        elif extent.last < at.position.entry:  # it lost its end: all that it has is learned
            position, waiting = Position(extent.last), 0
        else:
            is_whole = at.position.taken is None or await log.read_one(at.position.entry)
            position = at.position if is_whole else Position(at.position.entry)
            waiting = await _count_after(log, position, extent.last, keep_lease)
        self._recorded = cut
        gap_cut = Cut(position, entries=extent.added - waiting, command=Gap())
        await self.record(log, [gap_cut])  # if that fails, nothing was skipped
        self._enter_epoch()
        self.progress = replace(self.progress, log=extent.uuid, cut=self._recorded - 1)
        self.apply(gap_cut, None)

    async def _catch_up(self, log: Log, keep_lease: KeepLease) -> None:
        """Apply every recorded cut, up to the highest number that was ever recorded."""
        await self._replay(log, keep_lease)
        while (last := (await log.cut_range())[1]) > (at := self.progress.cut):
            await self._replay(log, keep_lease)  # a trainer that is now fenced off recorded more
            if self.progress.cut == at:
                key = log.keys.cuts
                raise ForeignError(
                    f"{key} has no record after cut {at}, but the number {last} was given out: "
                    "records were removed. If they were another program's, run: "
                    f"redis-cli {drop_from(key, EntryId(at + 1, 0))}   Otherwise restore the log "
                    "from its backup"
                )

    async def replay(self, log: Recording, keep_lease: KeepLease) -> None:
        """Apply the cuts of a log from which nobody learns, such as an archive.

        Args:
            log: reaches back to the progress.
            keep_lease: called before each cut.

        Raises:
            GapError: entries are missing.
            LogError: a recorded cut cannot be applied by this version.
        """
        await self._replay(log, keep_lease)

    async def _replay(self, log: Recording, keep_lease: KeepLease) -> None:
        pending = Pending(self.progress.position, self.progress.entries)
        while cuts := await log.cuts_after(self.progress.cut):
            for number, cut in cuts:
                await keep_lease()
                if number != self.progress.cut + 1:
                    expected = self.progress.cut + 1
                    raise damaged(
                        f"cut {expected} is missing, the next is {number}",
                        log.keys.log,
                        log.keys.cuts,
                    )
                if not self._fold.can_replay(cut.fold):
                    raise LogError(
                        f"cut {number} was learned by version {cut.fold} of the fold, and this "
                        f"process executes version {FOLD_VERSION}. Run the version that recorded "
                        "the cut until it has written a checkpoint, then upgrade"
                    )
                self._version = cut.fold
                self.state.drift.set_version(cut.fold)
                if isinstance(cut.command, Gap):
                    if self.progress.position.is_after(cut.position):
                        raise GapError(
                            f"at cut {number} another service accepted a gap, and from there on "
                            "learned again what is learned here"
                        )
                    pending = Pending(cut.position, cut.entries)
                while pending.position != cut.position and (
                    not pending or pending.newest < cut.position.entry
                ):
                    if not await self._read_again(log, pending):
                        raise GapError(f"cut {number} is not applied yet, and its entries are gone")
                expected = cut.entries + (cut.position.taken is not None)
                is_moved = pending.position != cut.position
                if is_moved and pending.count(cut.position.entry) < expected:
                    raise GapError(f"cut {number} is not applied yet, and entries of it are gone")
                repeated = cut
                if cut.joins or cut.met:
                    rules = replace(self._rules, names=self.state.schema.labels)
                    repeated = await self.joiner.repeat(log, number, cut, pending, rules)
                size = cut.examples - len(cut.met)
                skipped = () if self._skips is None else self._skips.of(number)
                again, batch = pending.take(size, cut, skipped)
                if (again.position, again.examples) != (cut.position, size):
                    if pending and (reason := pending.reason):
                        how = f"cut {number} has learned entry {pending.oldest}, but now {reason}"
                        raise damaged(how, log.keys.log, log.keys.cuts)
                    raise damaged(
                        f"cut {number} ends within another entry", log.keys.log, log.keys.cuts
                    )
                own = [one for one in repeated.met if one.place and one.place.entry not in skipped]
                if (met := batch_of(own)) is not None:
                    batch = met if batch is None else joined([batch, met])
                if self._skips is not None:
                    self._skips.counted(batch, cut.examples)
                    batch = None if self._skips.is_dry else batch
                self.apply(replace(repeated, joins=again.joins), batch)

    @property
    def _rules(self) -> Rules:
        """The examples that the next batch may hold."""
        return Rules(self.state.spec.shape, self.schema.check, self.schema.labels)

    async def watch_questions(self, log: Log, extent: Extent, is_read: bool) -> None:
        """Look at the log's time, and read questions if there are new ones.

        None of it may take as long as a lease, which is not renewed meanwhile. Joining labels may,
        as it goes on while the lease is renewed; then questions are looked at another time.

        Args:
            log: with the questions.
            extent: of the log, as it is now.
            is_read: whether all entries up to its end were read; then questions may time out.
        """
        joiner, rules = self.joiner, self._rules
        joiner.look(extent.time)
        if not joiner.rests.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(joiner.rests.wait(), REST_SECONDS)
        if joiner.rests.is_set() and extent.asked < joiner.highest:
            await joiner.look_for_loss(log)
        if joiner.rests.is_set() and extent.asked > joiner.newest:
            await joiner.catch_up(log, rules, READ_QUESTIONS)
        if joiner.rests.is_set() and not self.is_open:
            await joiner.time_out(log, rules, is_read)

    async def _carry_out(self, log: Log, cut: Cut) -> None:
        """Record a cut that has no batch, and apply it."""
        await self.record(log, [cut])
        self.apply(cut, None)

    def _command_cut(self, command: Command) -> Cut:
        return Cut(self.progress.position, entries=self.progress.entries, command=command)

    async def read(
        self, log: Log, pending: Pending, block_ms: int | None, is_new: bool = False
    ) -> bool:
        """Read some entries after the newest pending one; return whether there were any.

        Args:
            log: that it follows.
            pending: takes them.
            block_ms: longest wait for the first one; None does not wait.
            is_new: whether no cut has decided on them yet: then producers' entries that the state
                refuses become dead letters, as they would be refused over HTTP. They are rows that
                do not fit the schema, and integers where uint8 features alone were learned.

        Raises:
            GapError: an entry that is learned in part is gone, or the log is full.
            AnotherModelError: it is open, and the first examples are of another kind.
        """
        found = await _next_of(log, pending, block_ms)
        if is_new and self.is_open:
            self.is_open = await is_unclaimed(log, self.state.spec, self._opens, found)
        sizes = [sum(map(len, fields.values())) for _, fields in found]
        entries = await self._decoded(found, sum(sizes), is_new and self.state.expects_bytes)
        if is_new and any(entry.labels is not None for entry in entries):
            rest = [e if e.labels is None else pending.rest(e) for e in _some_labels(entries)]
            entries = await self.joiner.join(log, rest, pending.position, self._rules)
        for entry, size in zip(entries, sizes, strict=False):
            self._measure(entry, size)
            pending.add(self._admitted(entry) if is_new else entry)
        return bool(found)

    async def _read_again(self, log: Recording, pending: Pending) -> bool:
        """Read some entries that recorded cuts have decided on, as `read` does."""
        found = await _next_of(log, pending, None)
        sizes = [sum(map(len, fields.values())) for _, fields in found]
        if self._skips is not None:
            for one in found:
                self._skips.note(*one)
        for entry, size in zip(await self._decoded(found, sum(sizes), False), sizes, strict=True):
            self._measure(entry, size)
            pending.add(entry)
        return bool(found)

    async def _decoded(
        self, found: Sequence[RawEntry], size: int, expects_bytes: bool
    ) -> list[Entry]:
        """Return entries of so many bytes, decoded."""
        shape = self.state.spec.shape

        def decode() -> list[Entry]:
            return [read_entry(*one, shape, expects_bytes) for one in found]

        # Large entries are decoded in another thread, so that the lease is renewed meanwhile.
        return await asyncio.to_thread(decode) if size > READ_BYTES else decode()

    def _admitted(self, entry: Entry) -> Entry:
        """Return an entry, without its rows if a producer wrote them and the schema refuses them.

        HTTP has checked its rows already, perhaps against an earlier schema.
        """
        if not isinstance(entry.batch, Rows) or entry.source == "http":
            return entry
        try:
            self.schema.check(entry.batch)
        except InvalidBatchError as error:
            where = "" if error.index is None else f" (row {error.index})"
            return Entry(entry.id, None, entry.source, 0, f"{error}{where}"[:500])
        return entry

    def _measure(self, entry: Entry, size: int) -> None:
        """Take an entry of so many bytes into the counts and averages."""
        self.read_bytes += size
        self.mean_bytes += (0.05 if self.mean_bytes else 1.0) * (size - self.mean_bytes)
        if entry.batch is not None:
            weight = 0.05 if self.mean_entry else 1.0
            self.mean_entry += weight * (entry.examples - self.mean_entry)
        if entry.is_damaged and entry.id > self._newest_damaged:  # a reconnection reads some again
            self._newest_damaged = entry.id
            self.damaged_entries += 1
            logger.error("entry %s is not learned: %s", entry.id, entry.reason)

    async def record(self, log: Log, cuts: list[Cut]) -> None:
        """Append the next cuts to the log; the first of a log is preceded by `Begin`.

        Raises:
            FencedError: another trainer has taken over the log.
        """
        assert self._epoch is not None, "only an owner records"
        begin: list[Cut] = []
        if self._recorded == 0:
            spec, hyperparameters = self.state.spec.fields(), self.state.hyperparameters.fields()
            begin = [self._command_cut(Begin(spec, hyperparameters))]
        versioned = [replace(cut, fold=FOLD_VERSION) for cut in (*begin, *cuts)]
        changes = any(isinstance(cut.command, Reshape) for cut in cuts)
        schema = orjson.dumps(self.schema.to_json()).decode() if changes else ""
        await log.append_cuts(self._epoch, self._recorded + 1, versioned, schema)
        self._recorded += len(versioned)
        self._version = FOLD_VERSION
        self._warn_of(versioned)
        for cut in begin:
            self.apply(cut, None)

    def _warn_of(self, cuts: list[Cut]) -> None:
        """Log that cuts discard entries, with one of them and why, every WARN_SECONDS at most."""
        dead = {entry: reason for cut in cuts for entry, reason in cut.dead.items()}
        if not dead or self._clock.monotonic() < self._warns_from:
            return
        self._warns_from = self._clock.monotonic() + WARN_SECONDS
        entry, reason = next(iter(dead.items()))
        logger.warning(
            "entry %s is discarded: %s; funnel dead lists all such entries", entry, reason
        )

    def reshape_for(self, batch: AnyBatch | None) -> Reshape | None:
        """Return the command that lets the schema take a batch, if it needs one.

        The command counts as recorded from now on: record it with the next cuts.
        """
        if not isinstance(batch, Rows):
            return None
        new = self.schema.changes_for(batch)
        changes, self._undecided = (*self._undecided, *new), ()
        self.schema = self.schema.after(new)
        return Reshape(list(map(to_json, changes))) if changes else None

    def _take_schema(self) -> None:
        """Let what is declared hold from the next batch on: its changes are recorded with it."""
        self._undecided = self.state.schema.changes_to(self._declared, self._policies)
        self.schema = self.state.schema.after(self._undecided)

    def foresee(self, batches: Sequence[AnyBatch]) -> None:
        """Prepare for batches that `apply` will get, in their order; they need not come."""
        self._fold.foresee(batches)

    def _answers(self, cut: Cut) -> bool:
        """Return whether a batch is answered as `Snapshot` answers. Where families skip one, the
        pool's errors are no drift of an answer that all families give."""
        families = self.state.served.families
        return not cut.is_fast or families is None or not families.has_learned

    def apply(self, cut: Cut, batch: AnyBatch | None) -> None:
        """Apply a recorded cut: its batch, then its command."""
        at, applied = self.progress, None
        if batch is not None:
            began, n, is_answered = self._clock.monotonic(), len(batch), self._answers(cut)
            report = self._fold.step(batch, cut.is_fast)
            seconds = self._clock.monotonic() - began
            if is_answered:
                self.state.drift.note(report, n, self.state.examples, cut.position)
            applied = AppliedBatch(at.position, cut.position, report, seconds, n)
        match cut.command:
            case Begin(spec, hyperparameters):
                self._check_spec(Spec.of(dict(spec)), "the log")
                self.state.set_hyperparameters(Hyperparameters.of(dict(hyperparameters)))
            case Change(hyperparameters):
                self.state.set_hyperparameters(Hyperparameters.of(dict(hyperparameters)))
            case Reshape(changes):
                self.state.reshape(list(map(from_json, changes)))
            case Promote(learner=name):
                self.state.promote(name)
            case Rebuild() if self._skips is None:
                self._replace(cut.command, at.cut + 1)
        self.is_open = False
        if at.cut == 0:
            own = self.state.spec
            kind = "rows with named columns" if own.shape is None else "dense features"
            logger.info("the model begins to learn %s, task %s", kind, own.predicts)
        self.joins.apply(cut)
        self.commands = after(self.commands, at.cut + 1, cut)
        for entry, joins in cut.joins.items():
            self._became(entry, joins)
        self.progress = replace(
            at,
            cut=at.cut + 1,
            position=cut.position,
            entries=cut.entries,
            dead=at.dead + len(cut.dead),
            http=at.http + cut.sources.get("http", 0),
            redis=at.redis + cut.sources.get("redis", 0),
            asked=self.joins.closed,
        )
        if applied is not None and batch is not None:
            self._observe(applied, batch)


async def _next_of(log: Recording, pending: Pending, block_ms: int | None) -> list[RawEntry]:
    """Return the entries after the newest pending one; raises as `Replica.read` does."""
    if not pending and pending.position.taken is not None:
        one = await log.read_one(pending.position.entry)
        if one is None:
            raise GapError(f"entry {pending.position.entry}, learned in part, is gone")
        found = [one]
    else:
        found = await log.read(pending.newest, READ_ENTRIES, READ_BYTES, block_ms)
    if found and found[-1][0] == TOP:
        raise LogFullError  # its sender got an error
    return found


def _some_labels(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return the first entries: READ_LABELS end them, since each takes more memory with its
    question than in the log."""
    labels = 0
    for count, entry in enumerate(entries, 1):
        labels += 0 if entry.labels is None else len(entry.labels)
        if labels >= READ_LABELS:
            return entries[:count]
    return entries


async def _count_after(log: Log, position: Position, last: EntryId, keep_lease: KeepLease) -> int:
    """Return how many entries there are from a position on, up to an id."""
    total, after = 0, position.entry
    if position.taken is not None and await log.read_one(position.entry) is not None:
        total = 1
    while True:
        await keep_lease()
        count, after = await log.count_after(after, last)
        total += count
        if count < COUNTED_AT_ONCE:
            return total
