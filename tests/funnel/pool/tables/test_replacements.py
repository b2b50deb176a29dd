"""Rows that take replacements when they are needed have the bits of rows that take them at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from funnel import SGD, Adagrad, Expert
from funnel.pool.renewal import best_for
from funnel.pool.tables.replacements import MOST
from funnel.pool.tables.rows import BLOCK, CHUNK, Field, Rows
from tests.support.sparse import learn_sparse, sparse_batches, state_of, table

EXPERTS, OUT = 4, 2
FIELDS = [
    Field("weight", slice(0, EXPERTS), torch.zeros(EXPERTS, OUT), of_run=False),
    Field("gain", slice(0, EXPERTS), torch.full((EXPERTS, OUT), 0.5), of_run=False),
    Field("inner.0", slice(0, 1), torch.ones(1, OUT), of_run=True),
    Field("inner.1", slice(1, EXPERTS), torch.full((EXPERTS - 1, OUT), 0.1), of_run=True),
]


class Eager(Rows):
    """Rows that are all written at once."""

    def field(self, index: int) -> Tensor:
        return self.named()[self.fields[index].name]

    def from_the_start(self, which: Tensor) -> None:
        self._keep(np.arange(self.used))
        for k in which.nonzero().flatten().tolist():
            for index, one in enumerate(self.fields):
                if one.experts.start <= k < one.experts.stop:
                    own = k - one.experts.start
                    self.field(index)[:, own] = one.fresh[own]
            new = self.new_weights(np.arange(self.used))
            self.field(0)[:, k] = new.view(self.used, *self.fields[0].fresh.shape)[:, k]
            self._changed.fill(self._looks)

    def from_best(self, which: Tensor, log_weights: Tensor) -> None:
        if not bool(which.any()):
            return
        self._keep(np.arange(self.used))
        for index, one in enumerate(self.fields):
            bad, held = which[one.experts], self.field(index)
            if bool(bad.all()) and one.of_run:
                held.copy_(one.fresh)
                continue
            source = best_for(bad, log_weights[one.experts])
            for k in bad.nonzero().flatten().tolist():
                held[:, k] = held[:, int(source[k])]
        self._changed.fill(self._looks)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    bits = [{k: t.contiguous().view(torch.int32) for k, t in each.items()} for each in (one, other)]
    return bits[0].keys() == bits[1].keys() and all(
        torch.equal(tensor, bits[1][name]) for name, tensor in bits[0].items()
    )


experts = st.lists(st.booleans(), min_size=EXPERTS, max_size=EXPERTS).map(torch.tensor)
steps = st.one_of(
    st.tuples(st.just("use"), st.integers(0, 40)),
    st.tuples(st.just("write"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("renew"), experts),
    st.tuples(st.just("restart"), experts.filter(lambda which: not bool(which.all()))),
    st.tuples(st.just("rescale"), st.sampled_from([0.0, 0.5, 3.0, float("inf")])),
    st.tuples(st.just("scale"), st.sampled_from([0.0, 0.25])),
    st.sampled_from([("read", 0), ("copy", 0), ("save", 0), ("load", 0), ("look", 0)]),
)


@settings(deadline=None)
@given(st.sampled_from([0.0, 0.5]), st.lists(steps, max_size=40))
def test_any_sequence_gives_the_same_bits(scale: float, found: list[tuple[str, object]]) -> None:
    lazy, eager = Rows(FIELDS, scale), Eager(FIELDS, scale)
    seen, before = -1, dict[str, Tensor]()
    log_weights = torch.tensor([-1.0, -0.5, -3.0, -2.0])

    for what, how in found:
        used = eager.used
        some = torch.arange(0, used, 2 + used % 3)
        match what, how:
            case "use", int(more):
                for rows in (lazy, eager):
                    rows.use(used + more)
            case "write", int(seed):
                random = torch.Generator().manual_seed(seed)
                values = [torch.randn(len(some), width, generator=random) for width in (8, 16)]
                for rows in (lazy, eager):
                    rows.write(some, *values)
            case "renew", Tensor() as which:
                for rows in (lazy, eager):
                    rows.from_the_start(which)
            case "restart", Tensor() as which:
                for rows in (lazy, eager):
                    rows.from_best(which, log_weights)
            case "rescale", float(ratio):
                for rows in (lazy, eager):
                    rows.rescale(ratio)
            case "scale", float(bound):
                for rows in (lazy, eager):
                    rows.set_scale(bound)
            case "read", _:
                pairs = zip(lazy.read(some), eager.read(some), strict=True)
                assert all(same({"": one}, {"": other}) for one, other in pairs)
            case "copy", _:
                assert same(lazy.copied(some), eager.copied(some))
            case "save", _:
                assert same(lazy.named(), eager.named())
            case "load", _:
                saved = {name: tensor.clone() for name, tensor in lazy.named().items()}
                lazy = Rows(FIELDS, lazy._scale)
                lazy.start(used)
                for name, tensor in lazy.named().items():
                    tensor.copy_(saved[name])
                seen = -1
            case _:
                changed = np.isin(np.arange(used) // BLOCK, lazy.changed_since(seen))
                now = {name: tensor.clone() for name, tensor in eager.named().items()}
                kept = torch.from_numpy(~changed)
                for name, tensor in before.items() if seen >= 0 else ():
                    assert same({name: now[name][kept]}, {name: tensor[kept[: len(tensor)]]}), (
                        "a block has changed unseen"
                    )
                seen, before = lazy.look(), now
    assert same(lazy.named(), eager.named())


def test_more_replacements_than_are_remembered_give_the_same_bits() -> None:
    lazy, eager = Rows(FIELDS, 0.5), Eager(FIELDS, 0.5)
    for rows in (lazy, eager):
        rows.use(CHUNK + 9)
        for number in range(2 * MOST + 3):
            which = torch.arange(EXPERTS) == number % EXPERTS
            if number % 2:
                rows.from_the_start(which)
            else:
                rows.from_best(which, torch.tensor([-1.0, -0.5, -3.0, -2.0]))
            own = torch.arange(number, CHUNK + 9, 50)
            weights, state = rows.read(own)
            rows.write(own, weights + number, state + 1.0)
    assert same(lazy.named(), eager.named())


RENEWS = Expert(Adagrad(initial_accumulator_value=0.1), 0.3, 0.01, 0.03, renews=True)


@pytest.mark.parametrize("hidden", [(), (6,)], ids=str)
def test_a_pool_learns_and_publishes_the_same_bits(hidden: tuple[int, ...]) -> None:
    """Through shifts at which experts are renewed, restarts of diverged ones, and a resume."""
    pool = (
        replace(RENEWS, renews=False),
        RENEWS,
        replace(RENEWS, steps=4),
        Expert(SGD(), 0.1, 0.01, 0.03),
    )
    lazy, eager = table(hidden, pool, bits=16), table(hidden, pool, bits=16)
    eager.rows = Eager(eager.rows.fields, eager._scale)
    replaced = 0
    views = []
    for number in range(60):
        batch = next(sparse_batches(1, seed=number, n=200, shift=number // 10))
        if number == 35:
            for one in (lazy, eager):
                one.pool.parameters["bias" if not hidden else "0.bias"][[3]] = torch.nan
        for one in (lazy, eager):
            learn_sparse(one, batch)
        replaced = max(replaced, lazy.rows.replacements.epoch)
        if number % 7 == 0:
            views.append((lazy.published(), eager.published()))
        if number == 45:
            resumed = table(hidden, pool, bits=16)
            for name, tensor in resumed.pool.tensors().items():
                tensor.copy_(lazy.pool.tensors()[name])
            resumed.load({name: tensor.clone() for name, tensor in lazy.tensors().items()})
            lazy = resumed
    assert replaced >= 2
    ours, theirs = state_of(lazy), state_of(eager)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    for mine, other in [*views, (lazy.published(), eager.published())]:
        rows = np.arange(mine.used)
        assert torch.equal(mine.columns(rows), other.columns(rows))
