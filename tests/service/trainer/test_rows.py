"""Named rows along the log: every change of the schema is a cut, and replay repeats it."""

import random
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from service.fold.schema.kinds import ColumnPolicy, Kind
from service.fold.schema.schema import Schema
from service.fold.schema.toml import from_toml
from service.log.cuts import Cut, Gap, Pending, Reshape
from service.log.position import EntryId
from service.trainer.checkpoint import Checkpoint
from service.trainer.replica import Replica
from streams.rows.entry import to_bytes
from tests.support.checkpoints import kept
from tests.support.clock import StillClock
from tests.support.memory_log import MemoryLog, MemoryServer
from tests.support.named import a_row_spec, a_row_state, records, some_rows
from tests.support.replicas import a_replica, keep_lease
from tests.support.replicas import learn as learn_dense
from tests.support.states import HYPERPARAMETERS, same_tensors

pytestmark = pytest.mark.anyio

SCHEDULES = 100


def a_row_replica(optimizer: str = "sgd", schema: Schema | None = None) -> Replica:
    spec = a_row_spec(schema, optimizer=optimizer, bits=8)
    return Replica(a_row_state(spec, HYPERPARAMETERS), lambda *_: None, StillClock())


def send(server: MemoryServer, seed: int, n: int, late: bool = False, classes: int = 2) -> EntryId:
    """Append rows as HTTP does, or as a producer by hand does."""
    rows, labels = records(seed, n, late, classes)
    if seed % 3 == 0:
        fields = {b"rows": orjson.dumps(rows), b"labels": orjson.dumps(labels)}
    elif seed % 3 == 1 and n == 1:
        fields = {b"row": orjson.dumps(rows[0]), b"label": str(labels[0]).encode()}
    else:
        fields = {b"arrow": to_bytes(some_rows(seed, n, late, classes)), b"source": b"http"}
    return server.add(fields)


async def learn(replica: Replica, log: MemoryLog, pending: Pending, size: int) -> bool:
    """Learn a batch as the pipeline does; return whether there was anything."""
    while pending.examples < size and await replica.read(log, pending, None, is_new=True):
        pass
    if not pending:
        return False
    before = Cut(pending.position, entries=pending.entries)
    cut, batch = pending.take(size)
    command = replica.reshape_for(batch)
    group = [*([(replace(before, command=command), None)] if command else []), (cut, batch)]
    await replica.record(log, [one for one, _ in group])
    for one, examples in group:
        replica.apply(one, examples)
    return True


async def commands(log: MemoryLog) -> list[object]:
    return [cut.command for _, cut in await log.cuts_after(0)]


async def test_a_change_of_the_schema_is_recorded_before_the_batch_that_needs_it(
    memory: MemoryServer, log: MemoryLog
) -> None:
    replica = a_row_replica()
    pending = await replica.recover(log, False, keep_lease)
    for k in range(4):
        send(memory, k, 20, late=k == 2)
        await learn(replica, log, pending, 20)
    cuts = [cut for _, cut in await log.cuts_after(0)]
    shown = [type(cut.command).__name__ if cut.command else cut.examples for cut in cuts]
    assert shown[:3] == ["Begin", "Reshape", 20]
    late = next(k for k, cut in enumerate(cuts) if "device" in str(cut.command))
    assert isinstance(cuts[late].command, Reshape)
    assert cuts[late + 1].examples == 20
    assert Schema.from_json(orjson.loads(memory.schema)) == replica.state.schema


async def test_replay_of_rows_is_bit_identical_from_the_beginning_and_from_a_checkpoint(
    memory: MemoryServer, log: MemoryLog, tmp_path: Path
) -> None:
    replica, store = a_row_replica("pool"), kept(tmp_path)[0]
    pending = await replica.recover(log, False, keep_lease)
    for k in range(10):
        send(memory, k, 17, late=k > 5, classes=1 + k // 3)
        await learn(replica, log, pending, 13)
        if k == 4:
            store.write(Checkpoint.of(replica.state, replica.progress))
    for other in (a_row_replica("pool"), a_row_replica("pool")):
        assert other.load(store)
        await other.recover(log, False, keep_lease)
        assert same_tensors(other.state.tensors(), replica.state.tensors())
    blank = a_row_replica("pool")
    await blank.recover(log, False, keep_lease)
    assert same_tensors(blank.state.tensors(), replica.state.tensors())


@pytest.mark.parametrize("seed", range(SCHEDULES))
async def test_kills_and_takeovers_across_schema_changes_give_one_digest(
    seed: int, memory: MemoryServer, log: MemoryLog, tmp_path: Path
) -> None:
    """A process dies at any cut, and another goes on, from a checkpoint or from nothing."""
    rng = random.Random(seed)
    plan = [
        (1_000 * seed + k, rng.randint(1, 25), rng.random() < 0.3, rng.randint(1, 3))
        for k in range(8)
    ]
    size, store = rng.randint(3, 30), kept(tmp_path)[0]
    for one in plan:
        send(memory, *one)
    replica = a_row_replica()
    pending = await replica.recover(log, False, keep_lease)
    while await learn(replica, log, pending, size):
        fate = rng.random()
        if fate < 0.15:
            store.write(Checkpoint.of(replica.state, replica.progress))
        elif fate < 0.4:  # whatever was not written is lost; cuts are recorded
            replica = a_row_replica()
            replica.load(store)
            pending = await replica.recover(log, False, keep_lease)
    judge = a_row_replica()
    await judge.recover(log, False, keep_lease)
    assert judge.state.examples == sum(n for _, n, _, _ in plan)
    assert same_tensors(judge.state.tensors(), replica.state.tensors())
    assert judge.state.schema == replica.state.schema
    assert Gap() not in await commands(log)


async def test_rows_that_disagree_before_the_first_cut_are_learned_with_a_missing_value(
    memory: MemoryServer, log: MemoryLog
) -> None:
    for ages in ([41, 39, 38], ["old"]):
        rows = [{"age": age} for age in ages]
        labels = ["stay"] * len(rows)
        memory.add({b"rows": orjson.dumps(rows), b"labels": orjson.dumps(labels)})
    replica = a_row_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 4)
    assert (replica.state.examples, replica.progress.dead) == (4, 0)
    assert replica.state.missing_ratios() == {"age": 0.25}


async def test_a_producers_row_of_a_wrong_kind_is_a_dead_letter_and_moves_nothing(
    memory: MemoryServer, log: MemoryLog
) -> None:
    send(memory, 0, 20)
    replica = a_row_replica()
    pending = await replica.recover(log, False, keep_lease)
    await learn(replica, log, pending, 20)
    before = {name: tensor.clone() for name, tensor in replica.state.tensors().items()}
    memory.add({b"row": b'{"age": "old", "plan": "pro"}', b"label": b"stay"})
    memory.add({b"batch": b"dense"})
    await learn(replica, log, pending, 20)
    assert replica.progress.dead == 2
    assert same_tensors(before, replica.state.tensors())
    reasons = [letter[b"reason"].decode() for letter in memory.dead]
    assert "column 'age' is a number" in reasons[0]
    assert "named columns" in reasons[1]


async def test_a_model_of_dense_features_discards_rows(
    memory: MemoryServer, log: MemoryLog
) -> None:
    send(memory, 2, 3)
    replica = a_replica()
    await learn_dense(replica, log, await replica.recover(log, False, keep_lease), 20)
    assert replica.progress.dead == 1
    assert b"dense features" in memory.dead[0][b"reason"]


def declaring(text: str, replica: Replica | None = None) -> Replica:
    """Return a replica whose settings declare a schema as TOML."""
    state = a_row_state(a_row_spec(None, optimizer="sgd", bits=8), HYPERPARAMETERS)
    return Replica(state, lambda *_: None, StillClock(), from_toml(text))


FIRST = """
new_columns = "ignore"
[columns]
plan = "category"
age = "number"
at = { type = "time", parts = ["hour"] }
"""
SECOND = """
label = "outcome"
[columns]
plan = "category"
age = "category"
city = "category"
at = { type = "time", parts = ["hour", "weekday"] }
[cross]
pairs = [["plan", "at:hour"]]
[labels]
names = ["stay", "left"]
max = 5
"""


async def test_a_declaration_that_is_edited_holds_from_the_next_batch_on_and_is_replayed(
    memory: MemoryServer, log: MemoryLog, tmp_path: Path
) -> None:
    first, store = declaring(FIRST), kept(tmp_path)[0]
    pending = await first.recover(log, False, keep_lease)
    assert [column.name for column in first.schema.columns] == ["plan", "age", "at"]
    assert first.state.schema == Schema(), "nothing is recorded before the first batch"
    for k in range(3):
        send(memory, k, 20)
        await learn(first, log, pending, 20)
    assert "city" not in first.state.schema.index, "new columns are ignored"
    store.write(Checkpoint.of(first.state, first.progress))

    second = declaring(SECOND)
    second.load(store)
    pending = await second.recover(log, False, keep_lease)
    found = second.schema
    assert first.state.schema == second.state.schema
    assert {column.name: column.kind for column in found.columns} == {
        "plan": Kind.CATEGORY, "age": Kind.CATEGORY, "at": Kind.TIME, "city": Kind.CATEGORY,
    }  # fmt: skip
    assert [*found.index][:3] == ["plan", "age", "at"], "places never move"
    assert set(first.schema.labels) < set(found.labels)
    assert (found.label, found.max_classes, found.new_columns) == ("outcome", 5, ColumnPolicy.ADD)
    assert found.pairs.shape[1] == 1
    for k in range(3, 6):
        send(memory, k, 20)
        await learn(second, log, pending, 20)
    assert second.state.schema == second.schema

    third = declaring(SECOND)  # without a checkpoint, and with nothing to change
    pending = await third.recover(log, False, keep_lease)
    assert same_tensors(third.state.tensors(), second.state.tensors())
    count = len(await commands(log))
    send(memory, 6, 20)
    await learn(third, log, pending, 20)
    assert len(await commands(log)) == count + 1, "only the batch is recorded"


async def test_a_declaration_is_recorded_once_though_the_process_dies_before_its_batch(
    memory: MemoryServer, log: MemoryLog
) -> None:
    replica = declaring(FIRST)
    await replica.recover(log, False, keep_lease)
    other = declaring(FIRST)
    pending = await other.recover(log, False, keep_lease)
    send(memory, 0, 20)
    await learn(other, log, pending, 20)
    shapes = [command for command in await commands(log) if isinstance(command, Reshape)]
    assert len(shapes) == 1
    again = declaring(FIRST)
    await again.recover(log, False, keep_lease)
    assert same_tensors(again.state.tensors(), other.state.tensors())
