"""Sow faults into the code, and show which the simulator catches.

    python -m tests.simulation.mutants --schedules 2000

Each fault changes one place in a copy of the tree, and schedules run there until one of them breaks
a promise.
"""

import argparse
import importlib
import multiprocessing
import shutil
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Args:
        what: the fault.
        file: that it is in.
        right: the code as it is, once in the file.
        wrong: the code with the fault.
        plans: method of `Plan` that returns the schedules in which it shows.
    """

    what: str
    file: str
    right: str
    wrong: str
    plans: str = "of"

    def sow(self, root: Path) -> None:
        """Change the file in a copy of the tree.

        Raises:
            ValueError: the code is no longer there.
        """
        path = root / self.file
        text = path.read_text()
        if text.count(self.right) != 1:
            times = text.count(self.right)
            raise ValueError(f"{self.what}: {self.file} holds the code {times} times")
        path.write_text(text.replace(self.right, self.wrong))


DISK = "service/trainer/disk.py"
STORE, WRITER = "service/trainer/store.py", "service/trainer/writer.py"
REPLICA, TRAINER = "service/trainer/replica.py", "service/trainer/trainer.py"
PIPELINE, CUTS = "service/trainer/pipeline.py", "service/log/cuts.py"
CHOICE = "service/trainer/choice.py"
JOINER, JOINS = "service/trainer/joining/joiner.py", "service/trainer/joining/joins.py"
MUTANTS = (
    Mutant(
        "a file is not synced before it gets its name", DISK, "                file.sync()\n", ""
    ),
    Mutant(
        "a file gets its name before it is written",
        DISK,
        """                file.write(raw)
                file.sync()
            self.rename(scratch, path)
""",
        """                self.rename(scratch, path)
                file.write(raw)
                file.sync()
""",
    ),
    Mutant("the folder is not synced", DISK, "        self.sync(path.parent)\n", ""),
    Mutant(
        "the digest of a checkpoint is not checked",
        "service/trainer/checkpoint.py",
        "if hashlib.sha256(raw.replace(digest.encode(), BLANK.encode(), 1)).hexdigest() != digest:",
        "if not digest:",
    ),
    Mutant(
        "a chunk is not synced before the checkpoint that needs it",
        STORE,
        "            self._disk.put(self.directory / name, raw)\n",
        """            with self._disk.create(self.directory / name) as file:
                file.write(raw)
""",
    ),
    Mutant(
        "a chunk that an older checkpoint needs is removed",
        STORE,
        """        for path in self.files():
            try:
                needed |=""",
        """        for path in self.files()[-1:]:
            try:
                needed |=""",
    ),
    Mutant(
        "the digest of a chunk is not checked",
        "service/trainer/chunks.py",
        "(found := NAME.fullmatch(name)) is None or hashlib.sha256(raw).hexdigest() != found[2]",
        "NAME.fullmatch(name) is None",
    ),
    Mutant(
        "rows that were learned do not count as changed",
        "funnel/pool/tables/rows.py",
        "        self._changed[numbers // BLOCK] = self._looks\n",
        "",
    ),
    Mutant(
        "the log is trimmed before it is archived",
        "service/trainer/archive/archivist.py",
        "            cut=min(oldest.cut, end.cut),\n",
        "            cut=oldest.cut,\n",
    ),
    Mutant(
        "a segment lacks the entry within which it begins",
        "service/trainer/archive/archivist.py",
        """        elif not self.cuts:
            await self._take_part(log, self.begin.position)
""",
        "",
    ),
    Mutant(
        "the archive goes on after a failure as if it had written",
        "service/trainer/archive/archivist.py",
        "                name = await self._do(partial(self.archive.add, draft.segment()))\n"
        "                self.end, self._before, end = draft.end, str(name), draft.end\n",
        "                self.end = draft.end\n"
        "                name = await self._do(partial(self.archive.add, draft.segment()))\n"
        "                self._before, end = str(name), draft.end\n",
    ),
    Mutant("one checkpoint is kept", STORE, "KEPT = 3", "KEPT = 1"),
    Mutant(
        "the log is trimmed to the newest checkpoint",
        STORE,
        "return replace(min(found, key=lambda progress: progress.cut), position=lowest)",
        "return max(found, key=lambda progress: progress.cut)",
    ),
    Mutant(
        "the log is trimmed to the position of the oldest cut, wherever that lies",
        STORE,
        "return replace(min(found, key=lambda progress: progress.cut), position=lowest)",
        "return min(found, key=lambda progress: progress.cut)",
    ),
    Mutant(
        "a trainer that reconnects goes on in its old epoch",
        REPLICA,
        "        await self._take_over(log)  # after a reconnection",
        "        if self._epoch is None:\n            await self._take_over(log)  # after",
    ),
    Mutant(
        "a checkpoint that was written during a takeover is not read",
        TRAINER,
        "            if self._writer.checkpoints.has_news:\n                return True\n",
        "            pass\n",
    ),
    Mutant(
        "the log is trimmed although a checkpoint is unknown",
        STORE,
        "if not known or None in known:",
        "if not any(known):",
    ),
    Mutant(
        "the log is trimmed before the checkpoint is written",
        WRITER,
        "elif self._writing is not None and self._writing.done():",
        "elif self._writing is not None and self.checkpoints.files():",
    ),
    Mutant(
        "a batch is learned before its cut is recorded",
        PIPELINE,
        """            await self.replica.record(self.log, [cut for cut, _ in group])
            self._recorded""",
        """            for cut, batch in group:
                self.replica.apply(cut, batch)
            await self.replica.record(self.log, [cut for cut, _ in group])
            self._recorded""",
    ),
    Mutant(
        "cuts are recorded with numbers off by one after a recovery",
        REPLICA,
        "        self._recorded = self.progress.cut\n",
        "        self._recorded = self.progress.cut + 1\n",
    ),
    Mutant(
        "progress counts one entry too many",
        CUTS,
        "        self.position = Position(entry.id)\n        self.entries += 1\n",
        "        self.position = Position(entry.id)\n"
        "        self.entries += 1 + bool(entry.reason)\n",
    ),
    Mutant(
        "the part of an entry that is learned is not remembered",
        CUTS,
        "self.position = Position(entry.id, (before or 0) + n)",
        "self.position = Position(entry.id, n)",
    ),
    Mutant(
        "the epoch is not raised at a takeover",
        "tests/support/memory_log.py",
        "self.epoch = max(self.epoch, at_least) + 1",
        "self.epoch = max(self.epoch, at_least, 1)",
    ),
    Mutant(
        "an old epoch is not refused",
        "tests/support/memory_log.py",
        "            if epoch != server.epoch:\n",
        "            if epoch > server.epoch:\n",
    ),
    Mutant(
        "the epoch is kept after the lease is lost",
        REPLICA,
        "        self._epoch, self.has_recovered = None, False\n",
        "        self.has_recovered = False\n",
    ),
    Mutant(
        "a lease that ran out counts as held, and what others recorded is not replayed",
        TRAINER,
        "        if is_due and not await self._lease.renew():\n",
        "        if is_due and not await self._lease.take():\n",
    ),
    Mutant(
        "a trainer learns without the lease",
        TRAINER,
        "        if await self._lease.take():\n",
        "        if await self._lease.take() or True:\n",
    ),
    Mutant(
        "replay decides which entries are dead",
        CUTS,
        "if entry.batch is None if recorded is None else entry.id in recorded.dead:",
        "if entry.batch is None:",
    ),
    Mutant(
        "replay decides where a batch ends",
        CUTS,
        "while self._queue and (recorded is None or self.position != recorded.position):",
        "while self._queue and left:",
    ),
    Mutant(
        "replay forgets the change of a hyperparameter",
        REPLICA,
        """            case Change(hyperparameters):
                self.state.set""",
        """            case Change(hyperparameters) if self.has_recovered:
                self.state.set""",
    ),
    Mutant(
        "replay learns old cuts by the present version of the fold",
        REPLICA,
        "                self.state.drift.set_version(cut.fold)\n",
        "",
    ),
    Mutant(
        "dead letters are not recorded",
        "tests/support/memory_log.py",
        "                    server.bury(fields)\n",
        "                    pass\n",
    ),
    Mutant(
        "skipped batches are not recorded before a checkpoint",
        TRAINER,
        """        if self._writer.is_due(replica):
            await self._rejections.record(self._log)
""",
        "",
    ),
    Mutant(
        "a last checkpoint is written although skipped batches could not be recorded",
        TRAINER,
        "                if await self._attempt(record, failure):\n                    last",
        "                await self._attempt(record, failure)\n"
        "                if True:\n                    last",
    ),
    Mutant(
        "callers are answered before the snapshot is published",
        TRAINER,
        """        self._published_at = self._clock.monotonic()
        is_other""",
        """        self._published_at = self._clock.monotonic()
        self._waiters.answer(self._replica.progress.position)
        is_other""",
    ),
    Mutant(
        "callers are answered when an entry is learned in part",
        "service/log/position.py",
        "return self.entry > entry or (self.entry == entry and self.taken is None)",
        "return self.entry >= entry",
    ),
    Mutant(
        "after a lost answer a cut is recorded again under the next number",
        REPLICA,
        """        await log.append_cuts(self._epoch, self._recorded + 1, versioned, schema)
        self._recorded += len(versioned)
""",
        """        self._recorded += len(versioned)
        try:
            await log.append_cuts(self._epoch, self._recorded + 1 - len(versioned), versioned)
        except LogError as error:
            if "lost" not in str(error):
                raise
            await log.append_cuts(self._epoch, self._recorded + 1, versioned)
            self._recorded += len(versioned)
""",
    ),
    Mutant(
        "an append that is not confirmed is sent again",
        "service/log/intake.py",
        """        except (RedisError, OSError, LogUnavailable) as error:
            replies = [error] * len(group)
""",
        """        except (RedisError, OSError):
            await asyncio.sleep(0)
            return await self._write(group)
""",
    ),
    Mutant(
        "a key is not remembered",
        "service/log/intake.py",
        """        if key is not None:
            self._in_flight""",
        """        if key is not None and len(payload) % 2:
            self._in_flight""",
    ),
    Mutant(
        "an append is confirmed although the log refused it",
        "service/log/intake.py",
        "            if isinstance(reply, Exception):\n",
        "            if isinstance(reply, Exception) and 'memory' in str(reply):\n"
        "                entry.answer.set_result(b'1-1')\n"
        "            elif isinstance(reply, Exception):\n",
    ),
    Mutant(
        "a pipelined answer goes to the wrong caller",
        "service/log/intake.py",
        "        for entry, reply in zip(group, replies, strict=True):\n",
        "        for entry, reply in zip(reversed(group), replies, strict=True):\n",
    ),
    Mutant(
        "missing entries are not noticed",
        TRAINER,
        "        if is_known and extent.added != seen + unread:\n",
        "        if False:\n",
    ),
    Mutant(
        "missing entries at the end of the log are not noticed",
        TRAINER,
        "        if extent.last > newest and pipeline.is_idle and self.caught_up.is_set():\n",
        "        if False:\n",
    ),
    Mutant(
        "a gap among the recorded cuts cannot be accepted",
        REPLICA,
        "            if self.has_recovered or not accept_gap:\n                raise\n",
        "            if True:\n                raise\n",
    ),
    Mutant(
        "recorded cuts are not repeated before a gap is accepted",
        REPLICA,
        "        if extent.uuid == self.progress.log and first <= self.progress.cut + 1:\n",
        "        if False:\n",
    ),
    Mutant(
        "a model that begins after a gap does not record its hyperparameters",
        REPLICA,
        "begins_again = accepted and is_blank",
        "begins_again = False and is_blank",
    ),
    Mutant(
        "the wait for a full batch never ends",
        PIPELINE,
        "        return max(0.0, self._max_wait - waited)\n",
        "        return max(0.1, self._max_wait - waited)\n",
    ),
    Mutant(
        "a failed checkpoint is never tried again",
        WRITER,
        "        return self._writing is None and (self._is_requested or is_new)\n",
        "        is_new = is_new and not self.summary.failed\n"
        "        return self._writing is None and (self._is_requested or is_new)\n",
    ),
    Mutant(
        "a standby does not look at newer checkpoints when it takes over",
        TRAINER,
        "            if self._writer.checkpoints.has_news:  # another service has learned",
        "            if False:  # another service has learned",
    ),
    Mutant(
        "an open model does not look at what its log is claimed for",
        CHOICE,
        "    if (kind, has_numbers) != (mine, own.predicts.is_numeric):\n",
        "    if False:\n",
    ),
    Mutant(
        "an open model looks at its own examples and not at what others have claimed",
        CHOICE,
        "    if not (claimed := await log.claim(inputs)):\n",
        "    await log.claim(inputs)\n    if not (claimed := inputs):\n",
    ),
    Mutant(
        "an open model looks at its inputs and not at its task",
        CHOICE,
        "are_numbers(claimed) if TASK in opens else own.predicts.is_numeric",
        "own.predicts.is_numeric",
    ),
    Mutant(
        "a service confirms examples of whatever kind while its model is open",
        "service/http/routes/learn.py",
        "    if (INPUTS in opens and kind_of(claimed) != kind_of(own)) or (\n",
        "    if False and (\n",
    ),
    Mutant(
        "a later claim takes the place of an earlier one",
        "tests/support/memory_log.py",
        "self.inputs = self.inputs or (inputs if inputs.startswith(kind) else kind)",
        "self.inputs = inputs or self.inputs or kind",
    ),
    Mutant(
        "a model that takes another's place is not of the kind of the log",
        "service/settings.py",
        'taken["task"] = "regression" if end else "multiclass"',
        'taken["task"] = "multiclass"',
    ),
    Mutant(
        "an open model begins to learn before its log is claimed",
        REPLICA,
        "        if is_new and self.is_open:\n",
        "        if is_new and self.is_open and len(found) > 1:\n",
    ),
    Mutant(
        "an unreachable log ends learning",
        TRAINER,
        "                except (LogUnavailable, UnreadableError) as error:\n",
        "                except UnreadableError as error:\n",
    ),
    Mutant(
        "labels are decided on before the questions are read",
        JOINER,
        "        await self.catch_up(log, rules)\n        hashes",
        "        hashes",
        plans="asking",
    ),
    Mutant(
        "a question that has a label gets another one",
        JOINS,
        "        self.used[join.place] = join.label\n",
        "",
        plans="asking",
    ),
    Mutant(
        "a checkpoint forgets which questions have labels",
        JOINS,
        """                "used": used,""",
        """                "used": {},""",
        plans="asking",
    ),
    Mutant(
        "a checkpoint forgets which labels wait",
        JOINS,
        """                "waiting": waiting,""",
        """                "waiting": [],""",
        plans="asking",
    ),
    Mutant(
        "a question is closed before it is recorded that a label has met it",
        JOINER,
        "            first = min(met, pending.oldest_question)\n",
        "            first = TOP\n",
        plans="asking",
    ),
    Mutant(
        "a label does not supersede the default of a question that has timed out",
        JOINER,
        "        may = self._learns_last or earlier.result == Result.TIMEOUT\n",
        "        may = False\n",
        plans="asking",
    ),
    Mutant(
        "a label that has waited is recorded as met before it is recorded as waiting",
        JOINER,
        "if not at.is_after(position))\n        taken",
        "if at)\n        taken",
        plans="asking",
    ),
    Mutant(
        "a label that corrects a negative is forgotten when that is recorded",
        JOINS,
        "        if join.result != Result.ASSUMED or (",
        "        if join.result or (",
        plans="asking",
    ),
    Mutant(
        "a cut forgets the weight of a label that corrects a negative",
        CUTS,
        "    factor = [] if join.factor == 1.0 else [join.factor]\n",
        "    factor = [1.0] if join.factor == 1.0 else [1.0]\n",
        plans="asking",
    ),
    Mutant(
        "a question is closed before the sum of its labels is learned",
        JOINER,
        "                first = min(first, index.oldest_waiting)\n",
        "                first = min(first, TOP)\n",
        plans="asking",
    ),
    Mutant(
        "a checkpoint holds the last label in place of the sum",
        JOINS,
        "added(before.label, join.label) if before and is_more",
        "join.label if before and is_more",
        plans="asking",
    ),
    Mutant(
        "a question that repeats a closed one is open after a restart",
        JOINER,
        "        return replace(cut, repeats=repeats)\n",
        "        return replace(cut, repeats=repeats[:0])\n",
        plans="asking",
    ),
    Mutant(
        "a trainer does not claim the object storage when it takes over",
        "service/trainer/objects/shared.py",
        "    needs_claim = True\n",
        "    needs_claim = False\n",
        plans="stored",
    ),
    Mutant(
        "an old trainer names a checkpoint after another has claimed the storage",
        "service/trainer/objects/latest.py",
        "(present.epoch >= epoch and not is_own) or present.name > new.name",
        "False",
        plans="stored",
    ),
)


PACKAGES = ("funnel", "service", "streams", "tests")


def caught(mutant: Mutant, schedules: int, seed: int) -> str:
    """Return how the schedules catch a fault: a seed and a violation, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        skipped = shutil.ignore_patterns("__pycache__", "golden", "*.png", "docs")
        for name in PACKAGES:
            shutil.copytree(ROOT / name, root / name, ignore=skipped)
        mutant.sow(root)
        context = multiprocessing.get_context("fork")  # torch is imported once
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(root, schedules, seed, mutant.plans, sender))
        process.start()
        sender.close()
        try:
            how: str = receiver.recv()
        except EOFError:
            how = "the run ends"
        process.join()
    return how


def _run(root: Path, schedules: int, seed: int, plans: str, sender: Connection) -> None:
    """Run schedules with the code in a folder until one fails; send how it did."""
    for name in [n for n in sys.modules if n.split(".")[0] in PACKAGES]:
        del sys.modules[name]
    sys.path[:0] = [str(root), str(root / "service" / "entry")]
    plan, runs = (importlib.import_module(f"tests.simulation.{n}") for n in ("plan", "runs"))
    assert str(root) in str(runs.__file__), "the copy is imported"
    plan_of = getattr(plan.Plan, plans)
    seeds = range(seed, seed + schedules)
    found = ((k, how) for k in seeds if (how := runs.failure(plan_of(k))))
    number, how = next(found, (0, ""))
    sender.send(f"seed {number}: {how[:100]}" if how else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=2_000, help="for each fault, at most")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="faults with this text")
    options = parser.parse_args()
    missed = 0
    print("| fault | caught by |\n|---|---|")
    chosen = [m for m in MUTANTS if options.only in m.what]
    for mutant in chosen:
        how = caught(mutant, options.schedules, options.seed)
        missed += not how
        print(f"| {mutant.what} | {how or 'nothing'} |", flush=True)
    print(f"\n{len(chosen) - missed} of {len(chosen)} are caught")
    return 1 if missed else 0


if __name__ == "__main__":
    for module in ("torch", "redis.asyncio", "safetensors.torch", "river.drift", "uvloop"):
        importlib.import_module(module)
    sys.exit(main())
