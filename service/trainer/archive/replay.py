"""Rebuilds any version of a model that an archive reaches, bit for bit."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from service.log.cuts import Begin, Cut
from service.log.errors import Stopped
from service.log.keys import Keys
from service.process import Clock
from service.trainer.archive.archive import Archive, KeptName
from service.trainer.archive.recording import ArchivedLog, chain_of
from service.trainer.archive.segment import Name, Segment
from service.trainer.checkpoint import Checkpoint, DamagedError
from service.trainer.replica import AppliedBatch, Replica
from service.trainer.store import NAME, CheckpointStore
from streams.errors import FunnelError
from streams.examples import AnyBatch

Observe = Callable[[AppliedBatch, AnyBatch], None]


class UnreachableError(FunnelError):
    """A version that an archive does not reach; the message says what it reaches."""


class Place(NamedTuple):
    """Where an archive and the checkpoints of its model are."""

    archive: Archive
    store: CheckpointStore


@dataclass(frozen=True)
class Target:
    """The version to rebuild; the newest in the archive if neither is given."""

    cut: int | None = None
    """Number of the cut after which the model had it."""
    version: int | None = None


class Replay:
    """A model on its way along an archive.

    Args:
        place: with the archive.
        target: where it ends.
        device: on which the batches are learned.
        clock: times the steps.
        observe: called after each batch, with the batch itself.
        is_whole: whether it begins as early as it can, and not at the last checkpoint before the
            target.

    Raises:
        UnreachableError: the archive does not reach the target.
        OSError, DamagedSegmentError: it cannot be read.
    """

    def __init__(
        self,
        place: Place,
        target: Target,
        device: torch.device,
        clock: Clock,
        observe: Observe = lambda *_: None,
        is_whole: bool = False,
    ) -> None:
        self._archive, self._store = place
        self._target = target
        self._names = chain_of(self._archive, target.cut) or chain_of(self._archive)
        self._newest = self._names[-1].last if self._names else 0
        self.last = self._newest if target.cut is None else target.cut
        """Number of the last cut that may be applied."""
        self.start = start = self._start(is_whole)
        """The checkpoint from which it goes on; None if it begins where the log began."""
        if start is not None:
            spec, hyperparameters = start.spec, start.hyperparameters
        else:
            spec, hyperparameters = _begun(self._archive.read(self._names[0]))
        self.state = State(spec, hyperparameters, device)
        self.replica = Replica(
            self.state, observe, clock, is_calibration_recorded=True, rebuilt=self._archive.rebuilt
        )
        if start is not None:
            self.replica.take(start)

    def _start(self, is_whole: bool) -> Checkpoint | None:
        """Return the checkpoint from which to go on."""
        first = self._names[0].first if self._names else 0
        found: list[tuple[int, KeptName | Path]] = []
        found += [(name.cut, name) for name in self._archive.checkpoints()]
        found += [
            (int(name[2]), path) for path in self._store.files() if (name := NAME.match(path.name))
        ]
        own = [
            (cut, one)
            for cut, one in sorted(found, key=lambda known: known[0], reverse=not is_whole)
            if cut == self.last or first - 1 <= cut < self.last <= self._newest
        ]
        if is_whole and first == 1:
            own = []
        for _, one in own:
            with contextlib.suppress(DamagedError, FileNotFoundError):
                copy = self._read(one)
                if self._target.version is None or copy.version <= self._target.version:
                    return copy
        if first == 1 and self.last <= self._newest:
            return None
        raise UnreachableError(self._reach(min((cut for cut, _ in found), default=0), first))

    def _read(self, one: "KeptName | Path") -> Checkpoint:
        return self._archive.checkpoint(one) if isinstance(one, KeptName) else self._store.read(one)

    def _reach(self, oldest: int, first: int) -> str:
        """Return what the archive reaches, in words."""
        if not self._names:
            return "there is no archive here: is it the right place, and is the name right?"
        begin = 0 if first == 1 else oldest
        if self.last > self._newest:
            return (
                f"the archive ends at cut {self._newest}. A service archives what it has learned "
                "after 64 MB or ten minutes, after POST /checkpoint, and when it stops"
            )
        return f"the archive begins at cut {begin}, and no checkpoint before the target is kept"

    async def run(self, told: Callable[[Replica], None] = lambda _: None) -> Checkpoint:
        """Apply the cuts up to the target, and return the model as it was then.

        Args:
            told: called before each cut.

        Raises:
            UnreachableError: no cut has given the model the version.
            LogError: a cut cannot be applied by this version of Funnel.
        """
        replica, version = self.replica, self._target.version

        async def check() -> None:
            told(replica)
            if version is not None and self.state.version >= version:
                raise Stopped("it is there")

        async def load(name: Name) -> Segment:
            return self._archive.read(name)

        keys = Keys(self.state.spec.model)
        with contextlib.suppress(Stopped):
            await replica.replay(ArchivedLog(keys, self._names, load, self.last), check)
        if version is not None and self.state.version != version:
            raise UnreachableError(
                f"no cut gave the model version {version}: it was {self.state.version} after cut "
                f"{replica.progress.cut}"
            )
        told(replica)
        joins, commands = replica.joins, replica.commands
        return replace(
            Checkpoint.of(self.state, replica.progress, joins=joins, commands=commands),
            fold=replica.version,
        )


def _begun(segment: Segment) -> tuple[Spec, Hyperparameters]:
    """Return what the first cut of a log has recorded."""
    cut = Cut.from_json(1, segment.cuts[1].encode())
    assert isinstance(cut.command, Begin), "a log begins with it"
    return Spec.of(dict(cut.command.spec)), Hyperparameters.of(dict(cut.command.hyperparameters))
