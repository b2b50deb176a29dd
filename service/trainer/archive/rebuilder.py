"""Rebuilds a model without some examples, or as it was before, and lets its log go on from that.

The target state is written first. Then a cut is recorded that names it with its digest: a process
that is killed in between leaves the history as it was, and after it every replay takes the state
from the file. Commands that change the schema or the classes hold in the new history, too.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from service.log.cuts import Begin, Cut, Rebuild
from service.log.errors import FencedError, LogUnavailable
from service.log.log import Log
from service.log.position import EntryId, Progress
from service.process import Clock
from service.trainer.archive.archive import Archive, KeptName
from service.trainer.archive.recording import ArchivedLog, ContinuedLog, chain_of
from service.trainer.archive.replay import Place, UnreachableError
from service.trainer.archive.rules import Rule, RuledSkips, rules_of
from service.trainer.archive.segment import Name, Segment
from service.trainer.checkpoint import Checkpoint, DamagedError, encode
from service.trainer.replica import KeepLease, Replica
from service.trainer.store import NAME
from service.trainer.worker import Worker
from streams.errors import FunnelError

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """A rebuild that an operator wants."""

    rule: Rule
    order: Callable[[str, str], Rebuild]
    """Returns the command, given the rule as text and the name of the file."""
    is_dry: bool
    """True if it is only to be known what it would skip."""


@dataclass(frozen=True)
class Outcome:
    """The result of a rebuild, or what it would be."""

    cut: int
    """Number of the cut that carries the command, which is the model's version from then on; 0 if
    nothing was changed."""
    begin: int
    """Number of the cut after which the model was rebuilt."""
    examples: int
    batches: int
    """Examples that are skipped from there on, with those of earlier rebuilds, and batches that
    they were in."""
    version: int
    """Version of the model before."""


class Rebuilder:
    """Rebuilds the model of a replica.

    Args:
        place: with the archive and the checkpoints.
        worker: reads and writes them.
        clock: times the steps.
    """

    def __init__(self, place: Place, worker: Worker, clock: Clock) -> None:
        self._archive: Archive = place.archive
        self._store, self._worker, self._clock = place.store, worker, clock

    async def rebuild(
        self,
        replica: Replica,
        log: Log,
        ask: Ask,
        keep_lease: KeepLease,
    ) -> Outcome:
        """Rebuild a model that stands at the end of its recorded cuts; nothing has changed after an
        error, unless it is one of the log.

        Args:
            replica: recovered; no cut is recorded meanwhile.
            log: its log.
            ask: what is wanted.
            keep_lease: called before each cut.

        Raises:
            UnreachableError: no checkpoint before the examples is kept, with the log from there on;
                or the archive is damaged, or of a version that this one cannot replay.
            FencedError, LogUnavailable: the log does not take the command, or has it already.
            OSError: the state could not be written.
        """
        try:
            built, rule, outcome = await self._build(replica, log, ask, keep_lease)
        except (FencedError, LogUnavailable, UnreachableError):
            raise
        except FunnelError as error:
            raise UnreachableError(f"the archive cannot be replayed: {error}") from error
        if not outcome.cut:
            return outcome
        head = replica.progress
        built.version = outcome.cut
        copy = Checkpoint.of(built, replace(head, cut=outcome.cut))
        raw = encode(copy, copy.sha256(), self._store.numerics)
        file = await self._do(partial(self._archive.put_rebuilt, outcome.cut, raw))
        order = ask.order(rule.to_json(), file)
        cut = Cut(head.position, entries=head.entries, command=order)
        await keep_lease()
        await replica.record(log, [cut])
        replica.apply(cut, None)
        return outcome

    async def _build(
        self, replica: Replica, log: Log, ask: Ask, keep_lease: KeepLease
    ) -> tuple[State, Rule, Outcome]:
        """Return the state at the end of the recorded cuts, the rule, and what comes of them."""
        head, state, rule, is_dry = replica.progress, replica.state, ask.rule, ask.is_dry
        names = await self._do(partial(chain_of, self._archive))
        archived = ArchivedLog(log.keys, names, self._load, head.cut) if names else None
        first, _ = await log.cut_range()
        first = min(first, names[0].first) if names and names[-1].last >= first - 1 else first
        path = ContinuedLog(archived, log)
        earlier = rules_of(replica.commands)
        start = await self._start(rule, earlier, first, head.cut)
        if start is None and first == 1:
            start = await self._do(partial(_begun, await path.cuts_after(0), state, head.log))
        if start is None:
            raise UnreachableError(
                "no checkpoint is kept that is older than these examples, with the log from there "
                f"on: the archive begins at cut {first}"
            )
        if rule.version:
            rule = replace(rule, cut=await self._cut_of(path, start, rule.version, head.cut))
        skips = RuledSkips([*earlier, (head.cut + 1, rule)], is_dry)
        spec, hyperparameters = start.spec, start.hyperparameters
        built = await self._do(partial(State, spec, hyperparameters, state.device))
        other = Replica(
            built, lambda *_: None, self._clock, is_calibration_recorded=True, skips=skips
        )
        other.take(start)
        await other.replay(path, keep_lease)
        if other.progress.cut != head.cut or other.progress.position != head.position:
            raise UnreachableError(f"the log ends at cut {other.progress.cut}, not at {head.cut}")
        counts = start.progress.cut, skips.examples, skips.batches, state.version
        is_known = any(own == rule for _, own in earlier) and not rule.version
        is_idle = is_dry or is_known or not skips.examples
        return built, rule, Outcome(0 if is_idle else head.cut + 1, *counts)

    async def _start(
        self, rule: Rule, earlier: list[tuple[int, Rule]], first: int, last: int
    ) -> Checkpoint | None:
        """Return the newest checkpoint that has learned nothing of what is skipped."""
        found: dict[int, KeptName | Path] = {
            int(name[2]): path
            for path in await self._do(self._store.files)
            if (name := NAME.match(path.name))
        }
        found |= {name.cut: name for name in await self._do(self._archive.checkpoints)}
        rules = [*earlier, (last + 1, rule)]
        for cut, one in sorted(found.items(), reverse=True):
            if not first - 1 <= cut <= last:
                continue
            try:
                copy = await self._do(partial(self._read, one))
            except (DamagedError, FileNotFoundError):
                continue
            if all(cut >= number or _is_clean(copy, own) for number, own in rules):
                return copy
        return None

    def _read(self, one: KeptName | Path) -> Checkpoint:
        return self._archive.checkpoint(one) if isinstance(one, KeptName) else self._store.read(one)

    async def _cut_of(self, path: ContinuedLog, start: Checkpoint, version: int, last: int) -> int:
        """Return the number of the last cut with a version.

        Raises:
            UnreachableError: there was no such version.
        """
        number, at = start.progress.cut, start.version
        while number < last:
            for own, cut in await path.cuts_after(number):
                after = own if isinstance(cut.command, Rebuild) else at + (cut.examples > 0)
                if after > version:
                    if at != version:
                        raise UnreachableError(f"the model never had version {version}, but {at}")
                    return number
                number, at = own, after
        raise UnreachableError(f"the model has version {at}, and never had {version} before that")

    async def _load(self, name: Name) -> Segment:
        return await self._do(partial(self._archive.read, name))

    async def _do(self, work: Callable[[], T]) -> T:
        """Return the result of work in the worker."""
        return await asyncio.wrap_future(self._worker.start(work))


def _begun(cuts: Sequence[tuple[int, Cut]], state: State, log: str) -> Checkpoint:
    """Return the model as it was before its log's first cut."""
    command = cuts[0][1].command
    assert isinstance(command, Begin), "a log begins with it"
    spec, hyperparameters = Spec.of(dict(command.spec)), dict(command.hyperparameters)
    fresh = State(spec, Hyperparameters.of(hyperparameters), state.device)
    return Checkpoint.of(fresh, Progress(log))


def _is_clean(copy: Checkpoint, rule: Rule) -> bool:
    """Return whether a checkpoint has learned nothing of what a rule skips."""
    if rule.version:
        return copy.progress.cut <= rule.cut if rule.cut else copy.version <= rule.version
    at: EntryId = copy.progress.position.entry
    return at < rule.first
