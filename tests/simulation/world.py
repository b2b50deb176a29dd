"""A world of processes that learn from one log while faults happen, all drawn from a seed.

It runs the real `Intake`, `Trainer`, `Pipeline`, `Replica` and `CheckpointStore` on a simulated
log, disk and clock. After and during a run it checks the promises: nothing acknowledged is lost,
nothing is learned twice, every state and every checkpoint is the fold of the recorded log, no two
trainers append in one epoch, the log is trimmed no further than the oldest checkpoint, and once no
more faults happen, everything is learned within a bounded time.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from math import inf
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from service.fold.step import Fold
from service.log.cuts import Begin, Cut
from service.log.position import BEGINNING, TOP, Position, Progress
from service.monitoring.status import Condition
from service.settings import Settings, load_settings, seconds
from service.trainer.archive.archive import KeptName
from service.trainer.archive.segment import Name as SegmentName
from service.trainer.archive.segment import Segment
from service.trainer.checkpoint import Checkpoint, DamagedError, Decoded, decode, encode
from service.trainer.chunks import NAME as CHUNK_NAME
from service.trainer.chunks import DamagedChunkError, checked
from service.trainer.store import NAME
from streams.batch import decode as decode_batch
from streams.examples import AnyBatch, joined
from streams.rows.entry import from_bytes as rows_from_bytes
from streams.rows.rows import Rows
from tests.simulation.bucket import Shelf
from tests.simulation.chain import ChainState, chained
from tests.simulation.disk import Platter
from tests.simulation.joins import ASKED, BY_LABEL, Label, Rules, question_of
from tests.simulation.loop import OWNER, OwnClock, Owner, SimulatedClock, SimulatedLoop
from tests.simulation.oracle import Folded, Oracle, ViolationError
from tests.simulation.plan import Fault, Labelling, Plan
from tests.simulation.process import Process
from tests.simulation.producers import CLASSES, FEATURES, Producers
from tests.simulation.questions import Askers
from tests.simulation.server import SimulatedServer
from tests.support.named import a_row_spec

SPEC = Spec("logistic", FEATURES, CLASSES, (), "sgd", False, 0)
OF_NUMBERS = replace(SPEC, classes=0, task="regression")
NAMED = a_row_spec(optimizer="sgd", bits=6)
MOST_SMALL = 2
"""Small chunks that a table may have in a run, so that they become one in a run."""
SEGMENT_SECONDS = 2.0
"""Time between segments of the archive in a run."""
SETTLE_SECONDS = 60.0
"""Simulated time within which all must be learned once no more faults happen."""
KILLING = ("kill", "restart", "power", "tune", "crash", "step")
LARGEST_JUMP = 20.0
"""Seconds that a clock jumps at most; a lease may last so much longer."""

logger = logging.getLogger("funnel")


@dataclass
class Outcome:
    """How a run ended."""

    examples: int
    cuts: int
    seconds: float
    """Of simulated time."""
    events: Counter[str] = field(default_factory=Counter)


def hyperparameters(lr: float) -> Hyperparameters:
    """Return hyperparameters that differ in one number."""
    return Hyperparameters(lr=lr, momentum=0.0, gain_lr=0.03, scale_lr=0.03)


@cache  # reading them takes longer than a short run
def _base(is_open: bool, is_numeric: bool) -> Settings:
    if is_open:
        return load_settings({"model": "logistic", "standardize": False, "calibrate": False})
    chosen = {"model": "logistic", "schema": ""} | ({"task": OF_NUMBERS.task} if is_numeric else {})
    return load_settings(chosen)  # the plan has chosen what is learned


def _settings(plan: Plan) -> Settings:
    labelling = plan.labelling
    later = labelling and {
        "label_ttl": labelling.ttl,
        "label_grace": labelling.grace,
        "label_timeout": labelling.timeout,
        "labels": labelling.keeps,
        "join_bytes": labelling.join_bytes,
    }
    return _base(plan.is_open, plan.is_numeric).model_copy(
        update=(later or {})
        | {
            "batch_size": plan.batch_size,
            "max_wait_ms": plan.max_wait_ms,
            "checkpoint_every_seconds": plan.checkpoint_every,
            "lease_seconds": plan.lease_seconds,
        }
    )


def _rules(plan: Plan) -> Rules:
    """Return what decides on labels, as the oracle takes it."""
    if (labelling := plan.labelling) is None:
        return Rules()
    wait, has_default, default = labelling.timeout.partition(":")
    is_steady = labelling.join_bytes == "256MB" and all(
        fault.kind not in ("server clock", "clock") for fault in plan.faults
    )
    return Rules(
        labelling.keeps == "last",
        labelling.grace != "0s",
        int(default) if has_default else None,
        labelling.keeps == "sum",
        labelling.is_weighted,
        1000 * seconds(wait or labelling.ttl) if is_steady and labelling.keeps == "sum" else -inf,
    )


class World:
    """One run.

    Args:
        plan: what happens.
        clock: of the loop that it runs in.
        is_traced: whether to keep a trace of all events.
    """

    def __init__(self, plan: Plan, clock: SimulatedClock, is_traced: bool) -> None:
        self.plan, self.clock, self.settings = plan, clock, _settings(plan)
        self.events: Counter[str] = Counter()
        self.trace: list[str] | None = [] if is_traced else None
        self.violation: ViolationError | None = None
        self.is_over = False
        """True once no more faults happen and nobody needs to try again for ever."""
        self.oracle = Oracle(rules=_rules(plan))
        self.server_clock = OwnClock(clock)
        self.server = SimulatedServer(
            self.server_clock,
            self.oracle,
            plan.kind != "everysec",
            lambda owner: self._digest_of(owner),
            self._reach,
            self.violate,
        )
        self.server.decides = plan.is_open
        self.platter = Platter(random.Random(f"{plan.seed}/disk"), self._created, self._removed)
        self.shelf = Shelf(self.platter, self.server, self.violate)
        self._rotten: set[str] = set()
        """Chunks of which a bit has flipped."""
        self._archived = 0
        """Number of the last cut in any segment."""
        self.locks: dict[int, Owner | None] = {}
        self.states: dict[Owner, State] = {}
        self._rng = random.Random(f"{plan.seed}/faults")
        self._has_gap = False
        self.producers = Producers(self)
        self.askers = Askers(self)
        self.processes: list[Process] = []
        self._faults: set[asyncio.Task[None]] = set()

    def note(self, who: str, what: str, kind: str = "") -> None:
        """Add an event to the trace, and count it if it has a kind."""
        if kind:
            self.events[kind] += 1
        if self.trace is not None:
            self.trace.append(f"{self.clock.now:10.4f}  {who:12}  {what}")

    def violate(self, violation: ViolationError) -> None:
        """Keep the first violation."""
        self.note("the check", f"VIOLATION: {violation}")
        self.violation = self.violation or violation

    def _check(self) -> None:
        if self.violation is not None:
            raise self.violation

    def new_state(self, lr: float, settings: Settings) -> State:
        """Return a fresh state of the model that settings name, if they do."""
        if self.plan.is_open:
            return ChainState(settings.spec, hyperparameters(lr), self._stepped)
        if self.plan.is_real:
            spec = NAMED if self.plan.is_named else SPEC
            spec = OF_NUMBERS if self.plan.is_numeric else spec
            return State(spec, hyperparameters(lr), torch.device("cpu"))
        spec = OF_NUMBERS if self.plan.is_numeric else SPEC
        return ChainState(spec, hyperparameters(lr), self._stepped)

    def _digest_of(self, owner: Owner) -> bytes:
        state = self.states[owner]
        return state.chain if isinstance(state, ChainState) else b""

    def _stepped(self, state: ChainState) -> None:
        owner = OWNER.get()
        if owner is None:
            return
        try:
            self.oracle.check_step(state.chain, state.version)
        except ViolationError as violation:
            self.violate(violation)

    def _reach(self) -> int:
        """Return the cut up to which the log may be trimmed: every good checkpoint lies after it,
        and so does one that outlasts a power cut."""
        seen = {name: inode.raw for name, inode in self.platter.files.items()}
        lasting = self.platter.durable()
        reach = min(min(_cuts(seen), default=0), max(_cuts(lasting), default=0))
        return min(reach, self._archived)

    def _created(self, path: Path, raw: bytes) -> None:
        """Check a new checkpoint."""
        if CHUNK_NAME.fullmatch(path.name):
            return
        if (name := SegmentName.parse(path.name)) is not None:
            self._check_segment(Segment.of(path.name, raw))
            self._archived = max(self._archived, name.last)
            return
        if (kept := KeptName.parse(path.name)) is not None:  # a part of the archive may begin there
            self._archived = max(self._archived, kept.cut)
        found = _decoded(raw)
        if found is None:
            self.violate(ViolationError(f"{path.name} is written damaged"))
            return
        copy = found.copy
        self.note("the disk", f"{path.name}: version {copy.version} at {copy.progress}")
        self._check_chunks(path.name, found)
        if self.plan.is_real:
            return
        try:
            fold = self.oracle.check_checkpoint(copy)
        except ViolationError as violation:
            self.violate(violation)
            return
        if self.plan.labelling is not None and not fold.joined.agrees(copy.joins):
            self.violate(ViolationError(f"{path.name} holds other decisions: {copy.joins}"))
        if missing := self._unrecorded(fold):
            self.violate(ViolationError(f"{path.name} lies after {missing}, not among the dead"))
        if not self._needs(found) & self._rotten:
            self._check_rows(path.name, found, fold)

    def _check_segment(self, segment: Segment) -> None:
        """Check that a new segment of the archive has all that its cuts need."""
        begin, end = segment.begin, segment.end
        self.note("the disk", f"a segment holds cuts {begin.cut + 1} to {end.cut}", "segment")
        if self.plan.kind != "plain":
            return
        recorded = dict(self.server.every_cut)
        if other := [k for k, text in segment.cuts.items() if recorded.get(k) != text]:
            self.violate(ViolationError(f"the archive has other cuts than the log: {other}"))
        if list(segment.cuts) != [*range(begin.cut + 1, end.cut + 1)]:
            self.violate(ViolationError(f"a segment lacks some of the cuts to {end.cut}"))
        needed = {e for e in self.server.ever if begin.position.entry < e <= end.position.entry}
        needed |= set() if begin.position.taken is None else {begin.position.entry}
        if missing := needed - {entry for entry, _ in segment.entries}:
            self.violate(ViolationError(f"a segment lacks entries {missing}"))

    def _removed(self, name: str) -> None:
        """Check that nothing needs a file that is removed."""
        if CHUNK_NAME.fullmatch(name):
            for other, inode in self.platter.files.items():
                if NAME.fullmatch(other) and (found := _decoded(inode.raw)):
                    self._check_chunks(other, found)

    @staticmethod
    def _needs(found: Decoded) -> frozenset[str]:
        return found.manifest.chunks if found.manifest else frozenset()

    def _check_chunks(self, name: str, found: Decoded) -> None:
        """Check that the chunks that a checkpoint needs are there."""
        for chunk in self._needs(found) - self._rotten:
            inode = self.platter.files.get(chunk)
            if inode is None or not _is_good(chunk, inode.raw):
                self.violate(ViolationError(f"{name} needs {chunk}, which is not there or damaged"))

    def _check_rows(self, name: str, found: Decoded, fold: Folded) -> None:
        """Check how often a checkpoint has learned each example."""
        state = ChainState(SPEC, hyperparameters(0.0), lambda _: None)
        try:
            copy = found.whole(lambda chunk: self.platter.files[chunk].raw)
        except DamagedError as error:
            self.violate(ViolationError(f"{name} is not whole: {error}"))
            return
        state.load(copy.tensors, copy.version, copy.examples)
        if state.learned != Counter(k for one in fold.history() for k in one.numbers):
            self.violate(ViolationError(f"{name} counts other examples than the fold"))

    def _unrecorded(self, fold: Folded) -> list[str]:
        """Return what a fold has skipped or discarded without a dead letter."""
        if self.plan.kind != "plain":
            return []
        entries = {letter.get(b"entry") for letter in self.server.letters}
        versions = {letter.get(b"version") for letter in self.server.letters}
        missing = []
        for one in fold.history():
            missing += [f"entry {e}" for e in one.letters if str(e).encode() not in entries]
            if one.is_skipped and str(one.version).encode() not in versions:
                missing.append(f"version {one.version}")
        return missing

    async def run(self) -> Outcome:
        """Let entries arrive and faults happen; then check the promises.

        Raises:
            ViolationError: one of them is broken.
        """
        if self.plan.inherited:
            self._inherit()
        self.processes = [Process(self, k, m) for k, m in enumerate(self.plan.machines)]
        for process in self.processes:
            process.start()
        producing = asyncio.create_task(self.producers.run())
        asking = asyncio.create_task(self.askers.run()) if self.plan.labelling else None
        operating = asyncio.create_task(self._operate())
        for fault in self.plan.faults:
            await asyncio.sleep(max(0.0, fault.at - self.clock.now))
            self.note("the plan", str(fault).strip(), fault.kind)
            if fault.process < len(self.processes):
                happening = asyncio.create_task(self._happen(fault))
                self._faults.add(happening)
                happening.add_done_callback(self._faults.discard)
        await asyncio.sleep(max(0.0, self.plan.seconds - self.clock.now))
        while self._faults:
            await asyncio.wait(self._faults)
        self.note("the plan", "no more faults happen")
        self.is_over = True
        for process in self.processes:
            self._heal(process)
        await self._settle()
        operating.cancel()
        await producing
        if asking is not None:
            await asking
        for process in self.processes:
            if self._rng.random() < 0.5:
                await process.end()
            else:
                process.kill()
        self._check()
        last = self._last()
        self.processes.append(last)
        operating = asyncio.create_task(self._operate())
        await self._settle()
        operating.cancel()
        tip = self._check_end(last)
        await last.end()
        self._check()
        if missing := self._unrecorded(tip):
            raise ViolationError(f"{missing} have no dead letter")
        return Outcome(
            len(self.producers.acknowledged), self.oracle.tips[0].cut, self.clock.now, self.events
        )

    def _inherit(self) -> None:
        """Begin with cuts, and perhaps a checkpoint, of the first version of the fold."""
        server, rng = self.server, self._rng
        heir = Owner("heir")
        token = OWNER.set(heir)
        state = ChainState(SPEC, hyperparameters(0.01), self._stepped)
        self.states[heir] = state
        server.uuid = "inherited"
        epoch = server.take_epoch(0)
        begin = Begin(asdict(SPEC), asdict(hyperparameters(0.01)))
        server.record(epoch, 1, Cut(BEGINNING, command=begin, fold=1))
        for number in range(2, 2 + self.plan.inherited):
            dead = {}
            if self.plan.kind == "plain" and rng.random() < 0.5:  # this version can read it
                unread = server.add({b"batch": self.producers.meaning()[0]})
                dead = {unread: "it could not be read"}
            payload, sent = self.producers.meaning()
            server.meanings[payload] = sent
            entry = server.add({b"batch": payload})
            n = len(sent.numbers or ())
            entries = len(server.entries)
            cut = Cut(Position(entry), n, entries, dead, sources={"redis": n}, fold=1)
            server.record(epoch, number, cut)
            for letter in dead:
                server.bury({b"entry": str(letter).encode()})
            if sent.is_bad:
                server.bury({b"version": str(self.oracle.tips[0].version).encode()})
            self.producers.acknowledged += sent.numbers or ()
        OWNER.reset(token)
        if rng.random() < 0.5:
            self._write_inherited(rng.choice(list(self.oracle.tips[0].history())[:-1]))

    def _write_inherited(self, fold: Folded) -> None:
        state = ChainState(SPEC, hyperparameters(fold.lr), lambda _: None)
        state.chain, state.version, state.examples = fold.digest, fold.version, fold.examples
        for one in fold.history():
            state.learn(np.array(one.numbers, dtype=np.int64))
        progress = Progress(
            "inherited", 1, fold.cut, fold.position, fold.entries, fold.dead, fold.http, fold.redis
        )
        copy = Checkpoint(
            SPEC, state.hyperparameters, state.version, state.examples, state.tensors(), progress,
            fold=1,
        )  # fmt: skip
        self.platter.put(
            f"checkpoint-{1:08d}-{fold.cut:014d}.safetensors", encode(copy, copy.sha256(), {})
        )

    async def _settle(self) -> None:
        """Wait until everything in the log is learned.

        Raises:
            ViolationError: that takes too long, or something is broken.
        """
        jumps = max(0.0, -self.server_clock.offset)
        ends = self.clock.now + SETTLE_SECONDS + jumps
        for _ in range(1 if self.plan.kind == "plain" else 6):  # a gap is noticed within a second
            await asyncio.sleep(0.25)
            while not any(p.covers(self.server.newest) for p in self.processes):
                await asyncio.sleep(0.25)  # simulated: a status has no event
                self._check()
                if self.clock.now > ends:
                    raise ViolationError(
                        f"the log, which ends at {self.server.newest}, is not learned within "
                        f"{SETTLE_SECONDS + jumps:.0f} s: {'; '.join(map(str, self.processes))}"
                    )
        self._check()

    async def _operate(self) -> None:
        """Start again what has stopped; accept gaps that others than the service have made."""
        while True:
            await asyncio.sleep(0.3)
            for process in self.processes:
                if not process.is_up and process.failure is not None:
                    self._look_at(process.failure)
                    process.start()
                elif process.is_up and process.trainer.status.condition == Condition.HALTED:
                    reason = process.trainer.status.reason
                    self.note(process.name, f"halts: {reason}", "halt")
                    if not (self._has_gap and "--accept-gap" in reason):
                        self.violate(ViolationError(f"{process.name} halts: {reason}"))
                    await process.end()
                    if "damaged" in reason:
                        self.server.flush_streams()
                    process.start(accept_gap=True)

    def _look_at(self, failure: Exception) -> None:
        if isinstance(failure, DamagedError):
            self.violate(ViolationError(f"no checkpoint is good: {failure}"))

    def _heal(self, process: Process) -> None:
        """Let nothing be wrong any more."""
        self.server.is_down = self.server.is_full = self.server.is_read_only = False
        process.crash_at = None
        if not process.is_up:
            process.start()
        if process.owner is not None and process.is_up:
            process.owner.steps_left = None
            process.owner.resume()
            process.network.loss = process.network.late = 0.0
            process.network.is_cut = False
            process.network.release()
            process.disk.is_full = process.disk.is_broken = False
            for worker in process.workers:
                worker.slowness = 1.0

    def _last(self) -> Process:
        """Return a process that may have to replay what others learned, without faults."""
        last = Process(self, len(self.processes), 9)
        last.start()
        if last.is_up:
            last.network.loss = last.network.late = 0.0
        return last

    async def _happen(self, fault: Fault) -> None:
        """Let a fault begin, last and end."""
        process, server = self.processes[fault.process], self.server
        owner = process.owner
        match fault.kind:
            case "kill":
                process.kill()
            case "crash":
                process.crash_at = (fault.when, fault.what, fault.count)
            case "step" if owner is not None:
                owner.steps_left = fault.count
            case "restart":
                await process.end()
            case "power":
                self._cut_power(process.machine)
            case "server restart" | "server power":
                await self._restart_server(fault)
            case "checkpoint" if process.is_up:
                process.trainer.checkpoint()
            case "tune":
                process.lr = round(process.lr * 1.5, 6)
                await process.end()
            case "rot":
                self._rot()
            case "server clock":
                self.server_clock.offset += self._rng.uniform(-LARGEST_JUMP, LARGEST_JUMP)
            case "clock":
                process.clock.offset += self._rng.uniform(-LARGEST_JUMP, LARGEST_JUMP)
            case "full memory" | "read only":
                server.is_full, server.is_read_only = (
                    fault.kind == "full memory", fault.kind == "read only"
                )  # fmt: skip
                await asyncio.sleep(fault.seconds)
                server.is_full = server.is_read_only = False
            case "trim" | "delete" | "lose" | "flush" | "top":
                self._damage(fault)
            case _ if process.is_up:
                await self._trouble(process, fault)
        await asyncio.sleep(fault.seconds)
        for one in self.processes:
            if not one.is_up and fault.kind in KILLING:
                one.start()

    async def _trouble(self, process: Process, fault: Fault) -> None:
        """Trouble one process for a while."""
        owner, network, disk = process.owner, process.network, process.disk
        assert owner is not None
        match fault.kind:
            case "suspend":
                owner.suspend()
                await asyncio.sleep(fault.seconds)
                owner.resume()
            case "sleep":
                owner.suspend()
                await asyncio.sleep(fault.seconds)
                process.clock.slept += fault.seconds
                owner.resume()
            case "partition":
                network.is_cut = True
                await asyncio.sleep(fault.seconds)
                network.is_cut = False
            case "hold":
                network.hold(fault.what)
                await asyncio.sleep(fault.seconds)
                network.release()
            case "loss":
                network.loss, loss = 0.5, network.loss
                await asyncio.sleep(fault.seconds)
                network.loss = loss
            case "late":
                network.late, late = 0.5, network.late
                await asyncio.sleep(fault.seconds)
                network.late = late
            case "full disk":
                disk.is_full = True
                await asyncio.sleep(fault.seconds)
                disk.is_full = False
            case "broken disk":
                disk.is_broken = True
                await asyncio.sleep(fault.seconds)
                disk.is_broken = False
            case "slow":
                for worker in process.workers:
                    worker.slowness = 200.0
                await asyncio.sleep(fault.seconds)
                for worker in process.workers:
                    worker.slowness = 1.0

    def _cut_power(self, machine: int) -> None:
        """Kill all processes of a machine; what it did not sync is lost."""
        for process in self.processes:
            if process.machine == machine:
                process.kill()
        self.platter.cut_power()
        self.note("the disk", f"power cut; there are {sorted(self.platter.files)}")

    async def _restart_server(self, fault: Fault) -> None:
        self.server.is_down = True
        self.server.end()
        if fault.kind == "server power":
            if self.plan.is_embedded:
                self._cut_power(0)
            self._has_gap = self.server.cut_power() or self._has_gap
        await asyncio.sleep(fault.seconds)
        self.server.is_down = False

    def _rot(self) -> None:
        """Damage the newest checkpoint or a chunk that it needs, if another can be loaded."""
        files = {name: inode.raw for name, inode in self.platter.files.items()}
        checkpoints = sorted(filter(NAME.fullmatch, files))
        if len(checkpoints) < 2 or self._rotten:  # a chunk that rots damages the next ones, too
            return
        newest = checkpoints[-1]
        found = _decoded(files[newest])
        name = self._rng.choice([newest, *(sorted(self._needs(found)) if found else ())])
        if name == newest or list(_cuts({k: v for k, v in files.items() if k != name})):
            self.note("the disk", f"a bit of {name} flips")
            self.platter.rot(name)
            self._rotten |= {name} - {newest}

    def _damage(self, fault: Fault) -> None:
        """Do to the log what other programs may."""
        server, rng = self.server, self._rng
        self._has_gap = True
        present = list(server.entries)
        match fault.kind:
            case "trim":
                server.delete_by_hand(present[: rng.randint(0, len(present))])
            case "delete":
                server.delete_by_hand(rng.sample(present, min(len(present), rng.randint(1, 3))))
            case "lose":
                server.lose()
            case "flush" if len(self.processes) == 1:  # epochs begin again, which fences nobody
                server.flush()
            case "top" if not (server.is_full or server.is_read_only) and server.last < TOP:
                server.add({b"batch": b"top"}, TOP)

    def _check_end(self, last: Process) -> Folded:
        """Check the state of a process that has learned everything; return the fold it holds.

        Raises:
            ViolationError: a promise is broken.
        """
        status, tips, server = last.trainer.status, self.oracle.tips, self.server
        if self.plan.is_real:
            return self._check_real(last)
        if self.plan.kind == "everysec":  # a model may be ahead of a log that lost its end
            tips = self.oracle.by_digest.get(last.chain, [])
        tips = [t for t in tips if t.digest == last.chain]
        if not tips:
            raise ViolationError("the state is not the fold of the recorded log")
        shown = (status.version, status.examples, status.progress.position, status.progress.dead,
                 status.progress.http, status.progress.redis)  # fmt: skip
        right = {
            (t.version, t.examples, t.position, t.dead, t.http, t.redis): t for t in tips
        }  # several guesses may give one state
        if shown not in right:
            raise ViolationError(f"the status says {shown}, right is {list(right)}")
        tip, state = right[shown], last.state
        assert isinstance(state, ChainState)
        numbers = Counter(k for one in tip.history() for k in one.numbers)
        again = {k for k in numbers if k >= ASKED}  # `_check_labels` looks at questions
        if twice := [
            k for k, n in numbers.items() if n > 1 and k not in server.forgotten and k not in again
        ]:
            raise ViolationError(f"examples {twice} are learned twice")
        if state.learned != numbers:
            raise ViolationError("the state and the fold have learned other examples")
        acknowledged = set(self.producers.acknowledged)
        self._check_labels(tip)
        if lost := sorted(acknowledged - numbers.keys() - server.forgiven):
            raise ViolationError(f"examples {lost} are acknowledged and not learned")
        if last.trainer.snapshot.version != tip.version or status.backlog():
            raise ViolationError(
                f"snapshot {last.trainer.snapshot.version} of {tip.version}, "
                f"backlog {status.backlog()}"
            )
        return tip

    def _check_labels(self, tip: Folded) -> None:
        """Check that each question is learned once with its label, if that came after it.

        Raises:
            ViolationError: one is not.
        """
        if (labelling := self.plan.labelling) is None:
            return
        learned = [k for one in tip.history() for k in one.numbers if k >= ASKED]
        seen, times = self.oracle.seen, Counter(map(question_of, learned))
        is_once = labelling.keeps != "last" and not labelling.is_weighted
        if labelling.join_bytes != "256MB":  # an id that is asked again then is another question
            entries = {
                seen.numbers[own]: {place.entry for place, _ in places}
                for own, places in seen.places.items()
                if own in seen.numbers
            }
            times = Counter({k: n for k, n in times.items() if len(entries.get(k, ())) == 1})
        if is_once and (twice := [k for k, n in times.items() if n > 1]):
            raise ViolationError(f"questions {twice} are learned twice")
        first = dict[bytes, tuple[Label, int]]()
        waiting, closed = tip.joined.waiting, tip.joined.closed
        left = [own for own in waiting for p, _ in seen.places.get(own, ()) if p.entry >= closed]
        if labelling.keeps == "sum" and left:
            raise ViolationError(f"{len(left)} sums of labels are never learned")
        if labelling.is_weighted:
            self._check_assumed(labelling, Counter(learned))
            return
        if not labelling.is_patient:
            return
        for entry, sent in self.server.ever.items():
            for label in sent.labels or ():
                first.setdefault(label.hash, (label, seen.labelled[entry]))
        for own, (label, moment) in first.items():
            asked = [at for _, at in seen.places.get(own, [])]
            code = own in seen.numbers and seen.numbers[own] + BY_LABEL * label.label
            if asked and asked[0] < moment and code not in learned:
                raise ViolationError(f"question {code} had its label in time, and is not learned")
        sent_hashes = {label.hash for label, _ in self.askers.acknowledged}
        if missing := sent_hashes - first.keys():
            raise ViolationError(f"{len(missing)} labels are acknowledged, and not in the log")

    def _check_assumed(self, labelling: Labelling, learned: Counter[int]) -> None:
        """Check that each question is learned as a negative, and the first positive corrects it.

        Raises:
            ViolationError: one is not.
        """
        seen, default = self.oracle.seen, self.oracle.rules.default
        if not labelling.keeps_all or default is None:
            return
        if twice := [code for code, n in learned.items() if n > 1]:
            raise ViolationError(f"questions {twice} are learned twice with a label")
        codes = {own: seen.numbers[own] for own in seen.places if own in seen.numbers}
        if missing := [k for k in codes.values() if not learned[k + BY_LABEL * default]]:
            raise ViolationError(f"questions {missing} are not learned as negatives")
        first = dict[bytes, tuple[Label, int]]()
        for entry, sent in self.server.ever.items():
            for label in sent.labels or ():
                if label.label != default:
                    first.setdefault(label.hash, (label, seen.labelled[entry]))
        for own, (label, moment) in first.items():
            if own in codes and seen.places[own][0][1] < moment:
                code = codes[own] + BY_LABEL * label.label
                if not learned[code]:
                    raise ViolationError(f"question {code} is not corrected by its label")

    def _check_real(self, last: Process) -> Folded:
        state, tip = self.new_state(0.0, self.settings), self.oracle.tips[0]
        read = rows_from_bytes if self.plan.is_named else decode_batch
        meanings = {sent.numbers: read(raw) for raw, sent in self.server.meanings.items()}
        examples: dict[int, AnyBatch] = {}
        for numbers, batch in meanings.items():
            examples |= {k: batch.part(i, i + 1) for i, k in enumerate(numbers or ())}
        fold = Fold(state)
        for one in reversed(list(tip.history())):
            if one.numbers:
                batch = joined([examples[k] for k in one.numbers])
                if isinstance(batch, Rows):
                    state.reshape(state.schema.changes_for(batch))
                report = fold.step(batch)
                state.drift.note(report, len(batch), state.examples, one.position)
            state.set_hyperparameters(hyperparameters(one.lr))
        expected = Checkpoint.of(state, Progress()).sha256()
        if Checkpoint.of(last.state, Progress()).sha256() != expected:
            raise ViolationError("the real state is not the fold of the recorded log")
        learned = {k for one in tip.history() for k in one.numbers}
        if lost := set(self.producers.acknowledged) - learned:
            raise ViolationError(f"examples {lost} are acknowledged and not learned")
        return tip


@lru_cache(maxsize=64)
def _decoded(raw: bytes) -> Decoded | None:
    """Return what is in the bytes of a checkpoint, or None if it is damaged."""
    try:
        return decode(raw)
    except DamagedError:
        return None


@lru_cache(maxsize=256)
def _is_good(name: str, raw: bytes) -> bool:
    """Return whether a chunk is what its name says."""
    try:
        return bool(checked(name, raw))
    except DamagedChunkError:
        return False


def _cuts(files: dict[str, bytes]) -> Iterator[int]:
    """Yield the cuts of the good checkpoints among some files."""
    for name, raw in files.items():
        if NAME.fullmatch(name) and (found := _decoded(raw)) is not None:
            chunks = found.manifest.chunks if found.manifest else ()
            if all(chunk in files and _is_good(chunk, files[chunk]) for chunk in chunks):
                yield found.copy.progress.cut


class _Trace(logging.Handler):
    """What the service logs, in the trace."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        owner = OWNER.get()
        self._world.note(owner.name if owner else "", f"logs: {self.format(record)}")


def simulate(plan: Plan, trace: list[str] | None = None) -> Outcome:
    """Run one world from beginning to end, on simulated time.

    Args:
        plan: what happens.
        trace: all events are added to it.

    Raises:
        ViolationError: a promise is broken.
    """
    clock = SimulatedClock()
    loop = SimulatedLoop(clock)
    world = World(plan, clock, trace is not None)
    with (
        _logging_to(world),
        contextlib.nullcontext() if plan.is_real else chained(),
        patch("service.trainer.blocks.LEAST_BYTES", 0),
        patch("service.trainer.chunks.MOST_SMALL", MOST_SMALL),
        patch("service.trainer.archive.archivist.SEGMENT_SECONDS", SEGMENT_SECONDS),
        patch("service.trainer.archive.archivist.RETRY_SECONDS", 1.0),
        # It walks the heap that all processes share here: most of the time in a large test run.
        patch("service.trainer.writer.return_freed_memory", lambda: None),
    ):
        try:
            return loop.run_until_complete(world.run())
        finally:
            if trace is not None and world.trace is not None:
                trace += world.trace
            for process in world.processes:
                process.kill()
            loop.abandon()
            loop.close()


@contextlib.contextmanager
def _logging_to(world: World) -> Iterator[None]:
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    logger.propagate, logger.handlers = False, []
    if world.trace is None:
        logger.setLevel(logging.CRITICAL + 1)
    else:
        logger.setLevel(logging.INFO)
        logger.handlers = [_Trace(world)]
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers
