"""A pool that learns sparse inputs by compaction is the dense pool; a row changes by its visits."""

import mmap
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from funnel import SGD, Adagrad, Adam, Expert, Pool
from funnel.pool.expert import for_width
from funnel.pool.growth import grown_table
from funnel.pool.sparse import inputs_of
from funnel.pool.tables.rows import BLOCK, CAPACITY, CHUNK
from funnel.pool.tables.table import COUNTS, KEYS, VISITS, Table
from service.fold import networks
from service.process import return_freed_memory
from tests.support.elsewhere import elsewhere
from tests.support.pools import EXPERTS, KEEP, made
from tests.support.sparse import (
    CLASSES,
    DENSE,
    SparseBatch,
    learn_sparse,
    module,
    sparse_batches,
    state_of,
    table,
)

HIDDEN: list[tuple[int, ...]] = [(), (6,)]
WALKS = for_width(8)

STATM = Path("/proc/self/statm")


def everything_at_once(width: int, seed: int) -> SparseBatch:
    """Return a batch in which every example has every key."""
    random = np.random.default_rng(seed)
    n = 30
    values = random.normal(size=(n, width)).astype(np.float32)
    return SparseBatch(
        torch.from_numpy(random.normal(size=(n, DENSE)).astype(np.float32)),
        np.repeat(np.arange(n), width),
        np.tile(np.arange(width, dtype=np.uint64), n),
        values.flatten(),
        torch.from_numpy((values[:, :CLASSES]).argmax(axis=1)),
    )


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("experts", [WALKS, EXPERTS], ids=["default", "every inner optimizer"])
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_at_all_visits_sparse_is_dense_bit_for_bit(
    hidden: tuple[int, ...], experts: tuple[Expert, ...]
) -> None:
    width = 64  # no padding: the shapes are those of the dense pool
    sparse = Table(Pool(module(hidden), DENSE, experts), bits=16, active=8)
    wide = module(hidden, DENSE + width)
    first = next(iter(wide.parameters()))
    with torch.no_grad():  # the dense pool starts from the table's columns
        narrow = next(iter(module(hidden).parameters()))
        first[:, :DENSE] = narrow
        start = sparse.rows.new_weights(np.arange(width))[:, : len(first)].t()
        first[:, DENSE:] = start
        for mine, theirs in zip(
            list(wide.parameters())[1:], list(module(hidden).parameters())[1:], strict=True
        ):
            mine.copy_(theirs)
    dense = Pool(wide, DENSE + width, experts)
    order: Tensor | None = None
    for seed in range(20):
        batch = everything_at_once(width, seed)
        found = learn_sparse(sparse, batch, written_out=True)
        if order is None:  # row r is the key that came r-th
            order = torch.from_numpy(sparse.index.keys.astype(np.int64))
        inputs = torch.from_numpy(batch.values).view(-1, width)[:, order]
        inputs = torch.cat([batch.dense, inputs], dim=1)
        scored = dense.score(inputs, batch.labels)
        assert torch.equal(found.answers, scored.answers)
        dense.update(inputs, batch.labels, dense.decide(scored, KEEP))
    for name, tensor in sparse.rows.named().items():
        mine = dense.columns()[name]
        assert torch.equal(mine[:, :, :DENSE], sparse.pool.columns()[name]), name
        assert torch.equal(mine[:, :, DENSE:], tensor.permute(1, 2, 0)), name
    columns = {id(tensor) for tensor in dense.columns().values()}
    for name, tensor in dense.tensors().items():
        if id(tensor) not in columns:
            assert torch.equal(tensor, sparse.pool.tensors()[name]), name


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_sparse_products_learn_what_the_inputs_written_out_do(hidden: tuple[int, ...]) -> None:
    sparse, dense = table(hidden, EXPERTS[:1]), table(hidden, EXPERTS[:1])
    for batch in sparse_batches(6):
        found = learn_sparse(sparse, batch)
        expected = learn_sparse(dense, batch, written_out=True)
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_a_row_that_is_not_named_does_not_change_a_bit(hidden: tuple[int, ...]) -> None:
    learner = table(hidden)
    for batch in sparse_batches(10):
        before = {name: rows.clone() for name, rows in learner.rows.named().items()}
        used = learner.index.used
        learn_sparse(learner, batch)
        named = np.zeros(learner.index.used, dtype=bool)
        named[learner.index.find(batch.keys)] = True
        untouched = torch.from_numpy(~named[:used])
        for name, rows in learner.rows.named().items():
            assert torch.equal(rows[:used][untouched], before[name][untouched]), name
        if used:
            weights = learner.rows.named()["weight"][:used]
            assert not torch.equal(weights, before["weight"])


def permuted(batch: SparseBatch, seed: int) -> SparseBatch:
    """Return the batch with the keys of each example in another order."""
    order = np.lexsort((np.random.default_rng(seed).random(len(batch.keys)), batch.examples))
    return batch._replace(keys=batch.keys[order], values=batch.values[order])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 10))
def test_the_order_of_an_examples_keys_does_not_matter(seed: int, bits: int) -> None:
    one, other = table(bits=bits), table(bits=bits)  # few bits: rows share keys, and values add up
    random = np.random.default_rng(seed)
    for batch in sparse_batches(3, seed):
        drawn = batch._replace(values=random.normal(size=len(batch.keys)).astype(np.float32))
        learn_sparse(one, drawn)
        learn_sparse(other, permuted(drawn, seed))
    assert_same(state_of(one), state_of(other))


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
@pytest.mark.parametrize("cut", [0, 1, 7, 15])
def test_a_table_resumes_bit_for_bit(hidden: tuple[int, ...], cut: int) -> None:
    found = list(sparse_batches(20, n=300))  # more rows than there is memory for at first
    whole, before = table(hidden), table(hidden)
    for batch in found[:cut]:
        learn_sparse(before, batch)
    saved = state_of(before)
    resumed = table(hidden)
    learn_sparse(resumed, found[-1])  # what it held is replaced
    for name, tensor in resumed.pool.tensors().items():
        tensor.copy_(saved[name])
    resumed.load(saved)
    assert_same(state_of(resumed), saved)
    assert len(saved[KEYS]) == before.index.used
    for batch in found:
        learn_sparse(whole, batch)
    for batch in found[cut:]:
        learn_sparse(resumed, batch)
    assert whole.index.used > CAPACITY
    assert_same(state_of(resumed), state_of(whole))


def test_a_large_table_takes_the_rows_of_another_again() -> None:
    """A standby does so whenever the trainer has written a checkpoint."""
    learner = table(bits=16)
    for batch in sparse_batches(40, n=400):
        learn_sparse(learner, batch)
    assert learner.index.used > CHUNK
    saved = state_of(learner)
    learner.load(saved)
    assert_same(state_of(learner), saved)


def _resident() -> int:
    return int(STATM.read_text().split()[1]) * mmap.PAGESIZE


def _growth_of_a_table(rows: int) -> float:
    """Return the bytes that a table's rows and its views add, as a multiple of the rows' bytes.

    Memory that is free again belongs to malloc, which keeps more or less of it by chance.
    """
    return_freed_memory()
    learner = table(bits=18)
    own = learner.rows.weights.shape[1] + learner.rows.state.shape[1]
    everyone = torch.arange(rows)
    learner.rows.write(everyone[:0], *learner.rows.read(everyone[:0]))
    published, before = learner.published(), _resident()
    for count in range(rows // 10, rows + 1, rows // 10):
        learner.rows.use(count)
        for first in range(0, count, 5_000):
            part = everyone[first : min(first + 5_000, count)]
            learner.rows.write(part, *learner.rows.read(part))
        published = learner.published()
    assert published.rows.kept == 0
    return_freed_memory()
    return (_resident() - before) / (4 * rows * own)


@pytest.mark.skipif(not STATM.exists(), reason="the system does not say what is resident")
def test_memory_is_that_of_the_rows_in_use_and_of_what_changed_since_the_last_view() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:  # its heap holds no more
        fresh.submit(_growth_of_a_table, 10_000).result()  # whatever is loaded at first use
        assert fresh.submit(_growth_of_a_table, 300_000).result() < 1.2


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_blocks_that_changed_since_a_look_are_known_exactly(hidden: tuple[int, ...]) -> None:
    learner = table(hidden, bits=16)
    copy, seen = state_of(learner), learner.rows.look()
    for number, batch in enumerate(sparse_batches(30, n=200)):
        learn_sparse(learner, batch)
        if number == 20:
            learner.rows.from_the_start(torch.tensor([True] + 5 * [False]))
        if number % 3 == 0:
            continue
        blocks, copied = learner.rows.changed_since(seen), state_of(learner)
        is_copied = np.isin(np.arange(learner.index.used) // BLOCK, blocks)
        old = torch.from_numpy(~is_copied)[: len(copy[KEYS])]
        assert is_copied[len(copy[KEYS]) :].all(), "new rows have changed"
        for name, rows in learner.copied(blocks).items():
            assert torch.equal(rows, copied[name][torch.from_numpy(is_copied)]), name
            kept = copied[name][: len(old)][old]
            assert torch.equal(kept, copy[name][old]), f"{name} of other rows has not changed"
        copy, seen = copied, learner.rows.look()
    assert len(learner.rows.changed_since(-1)) == -(-learner.index.used // BLOCK)
    assert len(learner.rows.changed_since(seen)) == 0


def test_a_state_of_another_shape_is_refused_and_changes_nothing() -> None:
    learner, other = table(), Table(Pool(module(classes=2), DENSE, WALKS), 12, 8)
    for one in (learner, other):
        learn_sparse(one, next(sparse_batches(1))._replace(labels=torch.zeros(40).long()))
    before = state_of(learner)
    with pytest.raises(ValueError, match=r"table\.weight has the shape .* another number"):
        learner.load(other.tensors())
    with pytest.raises(ValueError, match=r"has no 'table\.counts'"):
        learner.load({})
    assert_same(state_of(learner), before)


@pytest.fixture(params=["host", "elsewhere"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device of the pool; that of the rows is the host's."""
    if request.param == "host":
        yield torch.device("cpu")
        return
    with elsewhere() as found:
        yield found


RENEWS = Expert(Adagrad(initial_accumulator_value=0.1), 0.3, 0.01, 0.03, renews=True)


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_a_renewed_expert_starts_again_in_all_rows(
    hidden: tuple[int, ...], device: torch.device
) -> None:
    memory = replace(RENEWS, renews=False)
    learner = table(hidden, (memory, RENEWS), device=device)
    for batch in sparse_batches(60, n=200):
        learn_sparse(learner, batch)
    before = {name: rows.clone() for name, rows in learner.rows.named().items()}
    used = learner.index.used
    few = next(sparse_batches(1, seed=9, categories=1, n=400, shift=1))
    learn_sparse(learner, few)
    assert learner.pool.state.step[0].flatten().tolist() == [61, 1]
    fresh = table(hidden, (memory, RENEWS))
    fresh.rows.use(learner.index.used)
    for name, rows in learner.rows.named().items():
        assert torch.equal(rows[:, 1], fresh.rows.named()[name][:, 1]), name
    untouched = torch.ones(used, dtype=torch.bool)
    found = learner.index.find(few.keys)
    untouched[found[found < used]] = False
    assert untouched.sum() > 100
    for name, rows in learner.rows.named().items():
        assert torch.equal(rows[:used][untouched, 0], before[name][untouched, 0]), name


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_one_that_walks_is_after_its_renewal_as_if_it_had_seen_no_row(
    hidden: tuple[int, ...],
) -> None:
    memory, walks = replace(RENEWS, renews=False), replace(RENEWS, steps=4)
    learner = table(hidden, (memory, walks))
    for batch in sparse_batches(60, n=200):
        learn_sparse(learner, batch)
    alone = table(hidden, (memory, walks))
    alone.load(learner.tensors())
    alone.rows.from_the_start(torch.tensor([True, True]))
    batch = next(sparse_batches(1, seed=9, n=400, shift=1))
    learn_sparse(learner, batch)
    learn_sparse(alone, batch)
    assert learner.pool.state.step[0].flatten().tolist() == [61, 1]
    for name, rows in learner.rows.named().items():
        if not name.startswith("inner.0."):  # the other expert's
            assert torch.equal(rows[:, -1], alone.rows.named()[name][:, -1]), name


def test_an_expert_that_diverges_becomes_a_copy_of_the_best_in_all_rows(
    device: torch.device,
) -> None:
    plain = replace(RENEWS, renews=False)
    experts = plain, replace(plain, lr=0.1), Expert(SGD(), 0.1, 0.01, 0.03)
    learner = table((), experts, device=device)
    found = list(sparse_batches(12, n=100))
    for batch in found[:-1]:
        learn_sparse(learner, batch)
    learner.pool.parameters["bias"][1:] = torch.nan
    learn_sparse(learner, found[-1])
    for name, rows in learner.rows.named().items():
        if not name.startswith("inner"):
            assert torch.equal(rows[:, 1], rows[:, 0]), name
            assert torch.equal(rows[:, 2], rows[:, 0]), name
    sums = learner.rows.named()["inner.0.sum"]
    assert torch.equal(sums[:, 1], sums[:, 0])
    assert all(tensor.isfinite().all() for tensor in state_of(learner).values())


def test_entries_of_one_column_are_added_where_inputs_are_written_out() -> None:
    dense, examples = torch.zeros(2, 1), np.array([1, 0, 0, 0])
    columns, values = np.array([2, 1, 3, 1]), np.array([4.0, 0.5, 2.0, 0.25], np.float32)
    with elsewhere() as device:
        entries = dense.to(device), examples, columns, values
        written = inputs_of(*entries, features=5, spare=4)
        nothing = inputs_of(dense.to(device), *(part[:0] for part in entries[1:]), 5, 4)
        assert isinstance(written, Tensor)
        assert isinstance(nothing, Tensor)
        assert written.cpu().tolist() == [[0.0, 0.75, 0.0, 2.0, 0.0], [0.0, 0.0, 4.0, 0.0, 0.0]]
        assert nothing.cpu().tolist() == [[0.0] * 5] * 2


def test_traces_learn_what_eager_steps_do() -> None:
    traced, eager = table(), table()
    for batch in sparse_batches(30, n=60, categories=3):
        learn_sparse(traced, batch)
        for compact in eager._compacts.values():
            compact.pool._configure(compact.pool.experts)  # without the traces
        learn_sparse(eager, batch)
    made_traces = [len(c.pool._take._traces) for c in traced._compacts.values()]  # type: ignore[attr-defined]
    assert max(made_traces) > 0
    assert_same(state_of(traced), state_of(eager))


def test_steps_in_inference_mode_and_outside_are_the_same() -> None:
    inside, outside = table(), table()
    for number, batch in enumerate(sparse_batches(12, n=200)):
        with torch.inference_mode(number % 2 == 0):
            learn_sparse(inside, batch)
        learn_sparse(outside, batch)
    assert_same(state_of(inside), state_of(outside))


def test_rates_of_the_pool_reach_its_rows() -> None:
    learner = table()
    found = list(sparse_batches(2))
    learn_sparse(learner, found[0])
    learner.pool.set_experts([replace(e, lr=0.0, pull=0.0) for e in learner.pool.experts])
    before = learner.rows.named()["weight"].clone()
    learn_sparse(learner, found[0])
    assert torch.equal(learner.rows.named()["weight"], before)


def test_experts_with_momentum_and_counts_learn_rows() -> None:
    learner = table((), (Expert(Adam(), 0.01, 0.01, 0.01, momentum=0.5), *EXPERTS[3:]))
    losses = [float(learn_sparse(learner, batch).losses.mean()) for batch in sparse_batches(60)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_keys_alone_are_learned(hidden: tuple[int, ...]) -> None:
    first = nn.Linear(1, (*hidden, CLASSES)[0])
    first.weight = nn.Parameter(first.weight[:, :0].detach())
    nn.init.zeros_(first.bias)
    deeper = [networks.build("logistic", size, CLASSES, (), seed=0) for size in hidden]
    model = nn.Sequential(first, nn.ReLU(), *deeper) if hidden else first
    learner = Table(Pool(model, 0, for_width(5)), bits=12, active=5)
    losses = [
        float(learn_sparse(learner, batch).losses.mean()) for batch in sparse_batches(80, dense=0)
    ]
    assert np.mean(losses[-10:]) < 0.6 * losses[0]


def test_collisions_and_keys_are_part_of_the_state() -> None:
    learner = table(bits=5)
    for batch in sparse_batches(4):
        learn_sparse(learner, batch)
    visits, collided = learner.tensors()[COUNTS].tolist()
    assert visits == 4 * 40 * 5
    assert 0 < collided == learner.index.collided


def test_a_user_module_gets_no_table() -> None:
    with pytest.raises(ValueError, match="needs a pool of linear layers"):
        Table(Pool(made("tanh"), 12), bits=8, active=4)


def test_examples_without_keys_are_learned_as_dense_ones() -> None:
    sparse, dense = table(experts=EXPERTS[:1]), Pool(module(), DENSE, EXPERTS[:1])
    for batch in sparse_batches(5):
        none = batch._replace(
            examples=batch.examples[:0], keys=batch.keys[:0], values=batch.values[:0]
        )
        found = learn_sparse(sparse, none)
        scored = dense.score(batch.dense, batch.labels)
        torch.testing.assert_close(found.losses, scored.losses)
        dense.update(batch.dense, batch.labels, dense.decide(scored, KEEP))
    assert sparse.index.used == 0


def test_a_batch_that_is_not_kept_changes_no_row() -> None:
    learner, found = table(), list(sparse_batches(6))
    for batch in found[:5]:
        learn_sparse(learner, batch)
    last = found[5]
    rows, inputs = learner.admit(last.dense, last.examples, last.keys, last.values)
    before = state_of(learner)
    pool = learner.gather(rows)
    pool.decide(pool.score(inputs, last.labels), ~KEEP)
    learner.scatter(rows, pool)
    assert_same(state_of(learner), before)


def test_every_row_counts_its_visits_and_keeps_them_when_it_is_restored_or_grows() -> None:
    learner, found = table(bits=5), Counter[int]()
    for batch in sparse_batches(4):
        examples, keys = batch.examples, batch.keys
        learner.admit(batch.dense, examples, keys, batch.values)
        found.update(learner.index.find(keys).tolist())
    expected = [found[row] for row in range(learner.index.used)]
    assert learner.index.row_visits.tolist() == expected
    assert sum(expected) == learner.index.visits
    restored = table(bits=5)
    restored.load(learner.tensors())
    assert restored.index.row_visits.tolist() == expected
    assert grown_table(learner, learner.pool).index.row_visits.tolist() == expected
    short = learner.tensors() | {VISITS: torch.zeros(1, dtype=torch.int64)}
    with pytest.raises(ValueError, match="visits has 1 numbers"):
        restored.load(short)
