"""The model at a place in its log: reading entries, recording cuts, carrying them out, recovering.

Nothing here decides where a batch ends; that is the learner's.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace

import orjson

from service.fold.report import Report
from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State, step
from service.log.entries import Cut, Entry, Pending, read_entry
from service.log.extent import check_reach
from service.log.log import BlankError, Extent, GapError, Log, LogError
from service.log.position import ORIGIN, TOP, EntryId, Position, Progress
from service.monitoring.pictures import Newest
from service.trainer.checkpoint import CheckpointStore
from streams.batch import Batch

logger = logging.getLogger("funnel")

READ_BYTES = 4 << 20
READ_ENTRIES = 100
"""Most that one read of the log takes; the last entry may go beyond."""
GAP_COMMAND = '{"gap": true}'

MayGoOn = Callable[[], Awaitable[bool]]
"""Asked now and then by what takes long; False breaks it off."""
Observe = Callable[[Position, Position, Report, float, int], None]
"""Told of each step: where its cut begins and ends, its report, its seconds on the host, its
examples."""


class Replica:
    """A state and the place it is at; moved by one thread.

    Args:
        state: as built.
        observe: told of each step.
    """

    def __init__(self, state: State, observe: Observe) -> None:
        self.state, self._observe = state, observe
        self.newest = Newest(state)
        self._hyperparameters = state.hyperparameters
        self.progress: Progress | None = None
        """None before the log was first seen, if there was no checkpoint."""
        self._is_loaded = False
        self.mean_entry = 1.0
        """Examples in an entry, on recent average."""
        self.step_seconds = 1.0
        """Of the last step, on the host."""
        self._recorded = 0
        """The number of the last cut that is recorded; it may not have been applied yet."""
        self._epoch: int | None = None
        self.has_recovered = False
        """Whether it is where the recorded cuts end, and cuts may be recorded."""

    @property
    def at(self) -> Progress:
        """The place; only once the log has been seen."""
        assert self.progress is not None
        return self.progress

    def backlog(self, added: int, mean_entry: float | None = None) -> int:
        """Estimate the examples that are not learned yet, if so many entries were ever added.

        Exact in entries; those not seen yet count ``mean_entry`` examples, or as recent ones had.
        """
        entries = added - self.at.entries
        examples = round(entries * (mean_entry or self.mean_entry))
        return max(0, examples - (self.at.position.taken or 0))

    def resign(self) -> None:
        """Record no more cuts until the next `recover`."""
        self._epoch, self.has_recovered = None, False

    def load(self, checkpoints: CheckpointStore) -> bool:
        """Go to the newest good checkpoint, if it is further on; say whether there is one.

        Raises:
            DamagedError: there are checkpoints, but no good one.
            UnreadableError: they cannot be read.
            LogError: the newest is of another model.
        """
        copy = checkpoints.load()
        if copy is None:
            return False
        if self.progress is not None and copy.progress.cut <= self.progress.cut:
            return True
        self._check_spec(copy.spec, f"the checkpoint in {checkpoints.directory}")
        self.state.set_hyperparameters(copy.hyperparameters)
        self.state.load(copy.tensors, copy.version, copy.examples, copy.drifts)
        self.progress, self._is_loaded = copy.progress, True
        return True

    def _check_spec(self, spec: Spec, what: str) -> None:
        mine, theirs = asdict(self.state.spec), asdict(spec)
        if differing := [k for k in mine if mine[k] != theirs[k]]:
            listed = ", ".join(f"{k} is {theirs[k]} there and {mine[k]} here" for k in differing)
            raise LogError(
                f"{what} is of another model: {listed}. Use its settings, or another DATA_DIR"
            )

    async def recover(self, log: Log, accept_gap: bool, may_go_on: MayGoOn) -> Pending:
        """Check the place against the log, take the log over and repeat every recorded cut.

        Args:
            log: as found now.
            accept_gap: go on behind entries that are missing.
            may_go_on: asked now and then; False breaks off.

        Returns:
            What is pending behind the last cut.

        Raises:
            GapError: the log does not reach back to the place.
            BlankError: nor to its beginning, and there is no place yet.
        """
        name, extent = await log.name(), await log.extent()
        is_blank = self.progress is None or (self.at.cut == 0 and not self._is_loaded)
        if self.progress is None:
            self.progress = Progress(name, 0, 0, Position(ORIGIN), 0, 0, 0, 0)
        try:
            check_reach(extent, self.at.log, self.at.position, self.at.entries)
            if is_blank and await log.first_cut() > 1:
                raise GapError("the first of the recorded cuts are gone")
            if accept_gap and not self.has_recovered:
                await self._check_whole(log, extent, may_go_on)
        except GapError as gap:
            cut = await log.last_cut() if is_blank else 0
            error = BlankError(cut) if cut else gap
            if self.has_recovered or not accept_gap:
                raise error from None
            logger.warning("gap accepted: %s", error.what)
            await self._accept_gap(log, may_go_on)
        if self._epoch is None:
            self._epoch = await log.take_epoch(self.at.epoch)
            self.progress = replace(self.at, epoch=self._epoch)
        await self._replay(log, may_go_on)
        self._recorded = self.at.cut
        if await may_go_on():  # else it may have been told to stop before all was repeated
            await log.note_from(self.state.version)
            if self.state.hyperparameters != self._hyperparameters:
                command = self._command({"rates": asdict(self._hyperparameters)})
                await self.record(log, [command])
                self.apply(command, None)
        self.has_recovered = True
        return Pending(self.at.position, self.at.entries)

    async def _check_whole(self, log: Log, extent: Extent, may_go_on: MayGoOn) -> None:
        """Make sure that no entry behind the place was deleted from among others; counts them.

        A learner without orders to go on finds that out when it has read them.

        Raises:
            GapError: some are gone.
        """
        behind = await log.behind(self.at.position, extent.last, may_go_on)
        if missing := extent.added - self.at.entries - behind:
            raise GapError(f"{missing} entries behind {self.at.position} were deleted")

    async def _accept_gap(self, log: Log, may_go_on: MayGoOn) -> None:
        """Move the place to what the log still has of entries not learned, and record that."""
        if (await log.extent()).last == TOP:
            await log.retire()
        name, extent, at = await log.name(), await log.extent(), self.at
        cut = max(at.cut, await log.last_cut())
        self._epoch = await log.take_epoch(at.epoch)
        if name != at.log:  # all that it has is new
            position = Position(extent.first, 0) if extent.first else Position(extent.last)
            behind = extent.length
        elif extent.last < at.position.entry:  # it went back: all that it has is learned
            position, behind = Position(extent.last), 0
        else:
            is_whole = at.position.taken is None or await log.read_one(at.position.entry)
            position = at.position if is_whole else Position(at.position.entry)
            behind = await log.behind(position, extent.last, may_go_on)
        gap = Cut(position, entries=extent.added - behind, command=GAP_COMMAND)
        self.progress = replace(at, log=name, epoch=self._epoch, cut=cut)
        self._recorded = cut
        await self.record(log, [gap])
        self.apply(gap, None)

    async def _replay(self, log: Log, may_go_on: MayGoOn) -> None:
        pending = Pending(self.at.position, self.at.entries)
        while cuts := await log.cuts_after(self.at.cut):
            for number, cut in cuts:
                if not await may_go_on():
                    return
                if number != self.at.cut + 1:
                    raise _damaged(log, f"cut {self.at.cut + 1} is missing, the next is {number}")
                if cut.command == GAP_COMMAND:
                    pending = Pending(cut.position, cut.entries)
                while pending.position != cut.position and (
                    not pending or pending.newest < cut.position.entry
                ):
                    if not await self.read(log, pending, None):
                        raise GapError(
                            f"cut {number}, which is to be repeated, needs entries that are gone"
                        )
                again, batch = pending.take(cut.examples, cut)
                if (again.position, again.examples) != (cut.position, cut.examples):
                    raise _damaged(log, f"cut {number} ends within another entry")
                self.apply(cut, batch)

    def _command(self, command: dict[str, object]) -> Cut:
        return Cut(
            self.at.position,
            entries=self.at.entries,
            command=orjson.dumps(command, option=orjson.OPT_SORT_KEYS).decode(),
        )

    async def read(self, log: Log, pending: Pending, block_ms: int | None) -> bool:
        """Read some entries behind the newest pending one; say whether there were any.

        Raises:
            GapError: an entry that is learned in part is gone.
        """
        spec = self.state.spec
        found: list[tuple[EntryId, dict[bytes, bytes]]] = []
        if not pending and pending.position.taken is not None:
            one = await log.read_one(pending.position.entry)
            if one is None:
                raise GapError(f"entry {pending.position.entry}, learned in part, is gone")
            found = [one]
        else:
            found = await log.read(pending.newest, READ_ENTRIES, READ_BYTES, block_ms)

        def decode() -> list[Entry]:
            return [read_entry(*one, spec.features, spec.classes) for one in found]

        # What is large is decoded beside the loop, in which the lease of who learns is renewed.
        is_large = sum(len(v) for _, fields in found for v in fields.values()) > READ_BYTES
        entries = await asyncio.to_thread(decode) if is_large else decode()
        for entry in entries:
            if entry.batch is not None:
                self.mean_entry += 0.05 * (len(entry.batch) - self.mean_entry)
            pending.add(entry)
        return bool(found)

    async def record(self, log: Log, cuts: list[Cut]) -> None:
        """Append the next cuts to the log; the very first is preceded by what the model is.

        Raises:
            FencedError: another learner has taken the log over.
        """
        assert self._epoch is not None
        if self._recorded == 0:
            spec, rates = asdict(self.state.spec), asdict(self.state.hyperparameters)
            begin = self._command({"spec": spec, "rates": rates})
            await log.append_cuts(self._epoch, 1, [begin, *cuts])
            self.apply(begin, None)
            self._recorded = 1 + len(cuts)
            return
        await log.append_cuts(self._epoch, self._recorded + 1, cuts)
        self._recorded += len(cuts)

    def apply(self, cut: Cut, batch: Batch | None) -> None:
        """Carry out a recorded cut: the batch, then the command."""
        if batch is not None:
            self.newest.note(self.state, batch)
            began = time.perf_counter()
            report = step(self.state, batch)
            self.step_seconds = time.perf_counter() - began
            self.state.drift.note(report, len(batch), self.state.examples, cut.position)
            self._observe(self.at.position, cut.position, report, self.step_seconds, len(batch))
        if cut.command:
            command = orjson.loads(cut.command)
            if "spec" in command:
                self._check_spec(Spec.of(command["spec"]), "the log")
            if "rates" in command:
                self.state.set_hyperparameters(Hyperparameters.of(command["rates"]))
        at = self.at
        self.progress = replace(
            at,
            cut=at.cut + 1,
            position=cut.position,
            entries=cut.entries,
            dead=at.dead + len(cut.dead),
            http=at.http + cut.sources.get("http", 0),
            redis=at.redis + cut.sources.get("redis", 0),
        )


def _damaged(log: Log, how: str) -> LogError:
    return LogError(
        f"the log's record of what was learned is damaged: {how}. Restore the log from its backup; "
        f"or delete {log.keys.log} and {log.keys.cuts}, and what is in them, and start once with "
        "--accept-gap"
    )
