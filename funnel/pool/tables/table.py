"""Sparse inputs of a pool: one row of a table for each key, learned by compaction.

A batch names some of the table's rows. They are put after the dense columns of the first layer,
in a pool whose other tensors are the main pool's own; the batch goes through that pool as
through any other, and the rows are scattered again. Its width is rounded up, and columns beyond
the rows are zero, so that few shapes occur, and traces recur.

Time passes per visit of a row: a batch that does not name it changes nothing of it. A renewal and a
restart of an expert concern all its rows; a row takes them when it is needed next.

    >>> import numpy as np
    >>> from torch import nn
    >>> table = Table(Pool(nn.Linear(3, 2), 3), bits=10, active=5)
    >>> dense, labels = torch.rand(2, 3), torch.tensor([0, 1])
    >>> examples, keys = np.array([0, 0, 1]), np.array([7, 8, 7], dtype=np.uint64)
    >>> rows, inputs = table.admit(dense, examples, keys, np.ones(3, dtype=np.float32))
    >>> pool = table.gather(rows)
    >>> decision = pool.decide(pool.score(inputs, labels), keep=torch.tensor(True))
    >>> pool.update(inputs, labels, decision)
    >>> table.scatter(rows, pool)
    >>> len(rows), table.index.used
    (2, 2)
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from funnel.pool.pool import BY_INPUT, Pool
from funnel.pool.sparse import LEAST_COLUMNS, Inputs, inputs_of, padded
from funnel.pool.stacked import fresh_state
from funnel.pool.tables.index import KeyIndex, Keys, Numbers
from funnel.pool.tables.pages import paged
from funnel.pool.tables.published import Published
from funnel.pool.tables.rows import BLOCK, Field, Rows, scale_of

KEYS, VISITS, COUNTS = "table.keys", "table.visits", "table.counts"


class Chosen(NamedTuple):
    """The rows that a batch names, and its inputs."""

    rows: Tensor
    """Numbers of the rows, int64 [U], ascending and different."""
    inputs: Inputs
    """Inputs of the pool that `Table.gather` returns for these rows."""


class Table:
    """Rows for the keys of sparse inputs, beyond the dense inputs of a pool.

    All rows stay in the memory of the host. The pool of a batch is on the device of the main pool;
    on a GPU the rows that a batch names are copied there and back.

    Rows of a model with hidden layers start at weights that depend on their number alone: from
    zero, hidden units would never see an example that has no dense inputs. Other rows start at 0.

    Args:
        pool: over the dense inputs, of which there may be none; its module is plain. The learning
            rates of its experts should be those of `funnel.pool.expert.for_width` for ``active``.
        bits: there are 2^bits slots for keys.
        active: number of inputs that are not zero in a typical example, dense or not.

    Raises:
        ValueError: the pool's module is not plain, or ``bits`` is outside its range.
    """

    def __init__(self, pool: Pool, bits: int, active: float) -> None:
        if not pool.models.is_plain:
            raise ValueError("a table needs a pool of linear layers with ReLU between them")
        self.pool, self.index = pool, KeyIndex(bits)
        self.bits, self.active = bits, active
        self.dense = pool.columns()["weight"].shape[2]
        """Number of dense inputs."""
        self._is_deep = len(pool.parameters) > 2
        self.rows = Rows(_fields(pool), self._scale)
        self._compacts: dict[int, _Compact] = {}
        self._named = np.zeros(0, dtype=np.bool_)
        """Scratch: the rows of a batch; all False between batches."""
        self._positions = np.zeros(0, dtype=np.int32)
        """Scratch: the column of each row of a batch."""

    @property
    def _scale(self) -> float:
        """The bound of the weights of new rows."""
        return scale_of(self.active) if self._is_deep else 0.0

    def set_active(self, active: float) -> None:
        """Let new rows start as for another number of inputs that are not zero.

        The caller changes the learning rates of the pool's experts.
        """
        self.active = active
        self.rows.set_scale(self._scale)

    def admit(
        self,
        dense: Tensor,
        examples: npt.NDArray[np.integer],
        keys: Keys,
        values: npt.NDArray[np.float32],
    ) -> Chosen:
        """Return the rows and inputs of a batch; keys that are new get rows.

        Args:
            dense: fp32 [n, d].
            examples: to which example each key belongs, [e], ascending.
            keys: uint64 [e].
            values: fp32 [e]; those of one key in one example are added.
        """
        numbers = self.index.admit(keys)
        self.rows.use(self.index.used)
        chosen = self._chosen(dense, examples, numbers, values)
        named = chosen.rows.numpy()
        places = self._positions[numbers] - self.dense
        self.index.count(named, np.bincount(places, minlength=len(named)))
        return chosen

    def find(
        self,
        dense: Tensor,
        examples: npt.NDArray[np.integer],
        keys: Keys,
        values: npt.NDArray[np.float32],
    ) -> Chosen:
        """Return the rows and inputs for a prediction, without keys that are new; arguments as for
        `admit`. Nothing changes."""
        numbers = self.index.find(keys)
        known = numbers >= 0
        return self._chosen(dense, examples[known], numbers[known], values[known])

    def gather(self, rows: Tensor) -> Pool:
        """Return a pool over the dense inputs and these rows.

        It is valid until the next call: pools of one width are one. All but the columns of the
        first layer are the main pool's own tensors.

        Args:
            rows: int64 [U], ascending and different.
        """
        features = self.dense + padded(len(rows), LEAST_COLUMNS)
        compact = self._compacts.get(features)
        if compact is None:
            with torch.inference_mode(False), torch.no_grad():
                compact = self._compacts[features] = _Compact(self.pool, self.rows, features)
        compact.fill(self.pool, rows)
        return compact.pool

    def scatter(self, rows: Tensor, pool: Pool) -> None:
        """Write back what a pool that `gather` returned has learned.

        Args:
            rows: as they were gathered.
            pool: the pool.
        """
        self._compacts[pool.columns()["weight"].shape[2]].empty(self.pool, rows)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, beyond those of the pool.

        Keys are uint64 as int64 of the same bits, [rows], and visits are int64 [rows], both not to
        be changed; counts are int64 [2], all visits and collisions; the others are views,
        [rows, …].
        """
        keys = torch.from_numpy(self.index.keys.view(np.int64))
        visits = torch.from_numpy(self.index.row_visits)
        counts = torch.tensor([self.index.visits, self.index.collided])
        named = {f"table.{name}": tensor for name, tensor in self.rows.named().items()}
        return {KEYS: keys, VISITS: visits, COUNTS: counts} | named

    def copied(self, blocks: Numbers) -> dict[str, Tensor]:
        """Return copies of what `tensors` has of some rows, by the same names.

        Args:
            blocks: their blocks, int64, ascending and different.
        """
        rows = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        rows = rows[rows < self.rows.used]
        keys = torch.from_numpy(self.index.keys[rows].view(np.int64))
        named = self.rows.copied(torch.from_numpy(rows))
        visits = torch.from_numpy(self.index.row_visits[rows])
        found = {f"table.{name}": tensor for name, tensor in named.items()}
        return {KEYS: keys, VISITS: visits} | found

    def load(self, named: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of another table of the same kind, bit for bit.

        Args:
            named: what `tensors` returned. An older version did not count the visits of each row;
                they begin at 0 then.

        Raises:
            ValueError: a name is missing, or a tensor has another shape; nothing has changed then.
        """
        missing = sorted(self.tensors().keys() - named.keys() - {VISITS})
        if missing:
            raise ValueError(
                f"the state has no {missing[0]!r}: it is not that of a table like this"
            )
        keys = named[KEYS].numpy().view(np.uint64)
        for field in self.rows.fields:
            found, expected = named[f"table.{field.name}"].shape, (len(keys), *field.fresh.shape)
            if tuple(found) != expected:
                raise ValueError(
                    f"table.{field.name} has the shape {tuple(found)}, expected {expected}: the"
                    " state belongs to another number of experts or units"
                )
        row_visits = named[VISITS].numpy() if VISITS in named else np.zeros(len(keys), np.int64)
        if len(row_visits) != len(keys):
            raise ValueError(f"{VISITS} has {len(row_visits)} numbers, expected {len(keys)}")
        visits, collided = named[COUNTS].tolist()
        self.index.restore(keys, row_visits, visits, collided)
        self.rows.start(len(keys))
        for name, tensor in self.rows.named().items():
            tensor.copy_(named[f"table.{name}"])

    def published(self) -> Published:
        """Return what prediction needs, which later batches do not change.

        It shares the rows, of which only those are copied that change while it is in use.
        """
        return Published(
            tuple(p.clone() for p in self.pool.parameters.values()),
            self.pool.mixing.log_weights.clone(),
            self.rows.version(),
            self.pool.loss,
            {name: tensor.clone() for name, tensor in self.pool.held.items()},
            self.index,
            self.rows.of_weights,
            self.rows.start_of,
        )

    def _chosen(
        self,
        dense: Tensor,
        examples: npt.NDArray[np.integer],
        numbers: Numbers,
        values: npt.NDArray[np.float32],
    ) -> Chosen:
        if len(self._named) < self.rows.used:
            self._named = paged((len(self.rows.weights),), np.bool_)
            self._positions = paged((len(self.rows.weights),), np.int32)
        self._named[numbers] = True
        rows = self._named.nonzero()[0]
        self._named[rows] = False
        self._positions[rows] = np.arange(self.dense, self.dense + len(rows))
        features = self.dense + padded(len(rows), LEAST_COLUMNS)
        places = self._positions[numbers].astype(np.int64)
        inputs = inputs_of(dense, examples, places, values, features, spare=features - 1)
        return Chosen(torch.from_numpy(rows), inputs)


class _Compact:
    """A pool over the dense inputs and as many rows as fit into a width.

    Args:
        main: the pool over the dense inputs alone.
        rows: where the rows come from.
        features: the width.
    """

    def __init__(self, main: Pool, rows: Rows, features: int) -> None:
        self._rows, self._gathered = rows, torch.zeros(0, dtype=torch.int64)
        self._on_host, device = main.device.type == "cpu", main.device
        self._weights = torch.zeros(rows.weights.shape[1], features, device=device)
        self._state = torch.zeros(rows.state.shape[1], features, device=device)
        self._blank_state = rows.blank[:, None].to(device)
        self._renewed, self._diverged = torch.zeros(
            2, len(main.experts), dtype=torch.bool, device=device
        )
        """Experts whose rows `empty` replaces, from the start and from the best; on a GPU alone."""
        self._log_weights = torch.zeros(len(main.experts), device=device)
        """Log weights by which the best is chosen then."""
        sizes = [field.fresh.numel() for field in rows.fields]
        parts = [self._weights, *self._state.split(sizes[1:])]
        mine = {
            field.name: part.view(*field.fresh.shape, features)
            for field, part in zip(rows.fields, parts, strict=True)
        }
        restart, blanks = main.restart, {}
        self._dense = main.columns()["weight"].shape[2]
        for field in rows.fields:
            theirs = main.columns()[field.name]
            blank = field.fresh[:1, :, None].repeat(1, 1, features).to(device)
            blank[:, :, : self._dense] = restart.blank_of(theirs)
            blanks[id(theirs)] = (mine[field.name], blank)
        self._blank = blanks[id(main.columns()["weight"])][1]
        self.pool = main.with_columns(mine, restart.with_columns(blanks, beyond=self))

    def fill(self, main: Pool, rows: Tensor) -> None:
        """Take the dense columns and these rows."""
        if self.pool.experts is not main.experts:
            self.pool.set_experts(main.experts)
        start, stop = self._dense, self._dense + len(rows)
        self._copy_dense(main, self.pool)
        for held, found in zip((self._weights, self._state), self._rows.read(rows), strict=True):
            if self._on_host:  # numpy copies across in half of torch's time
                held.numpy()[:, start:stop] = found.numpy().T
            else:
                held[:, start:stop] = found.to(held.device).t()
        self._weights[:, stop:] = 0.0
        self._state[:, stop:] = self._blank_state
        self._gathered = rows
        if not self._on_host:
            self._fill_blank()

    def empty(self, main: Pool, rows: Tensor) -> None:
        """Give the dense columns and the rows back."""
        own = slice(self._dense, self._dense + len(rows))
        self._copy_dense(self.pool, main)
        if not self._on_host:
            self._replace()
        weights, state = (t[:, own].t().contiguous().cpu() for t in (self._weights, self._state))
        self._rows.write(rows, weights, state)
        main.alignment = self.pool.alignment

    def from_the_start(self, which: Tensor) -> None:
        """Set all rows of some experts, bool [K], back to how they started."""
        if self._on_host:
            self._fill_blank()
            self._rows.from_the_start(which)
        else:
            self._renewed.copy_(which)

    def from_best(self, which: Tensor, log_weights: Tensor) -> None:
        """Make all rows of some experts copies of those of the best of the others."""
        if self._on_host:
            self._rows.from_best(which, log_weights)
        else:
            self._diverged.copy_(which)
            self._log_weights.copy_(log_weights)

    def _fill_blank(self) -> None:
        """Let the columns of the rows, if they are set back, start as these rows started."""
        new = self._rows.new_weights(self._gathered.numpy())
        one = new[:, : self._blank.shape[1]].t()
        own = slice(self._dense, self._dense + len(self._gathered))
        self._blank[0, :, own] = one.to(self._blank.device)

    def _replace(self) -> None:
        """Replace all rows as the step has decided, which no step on a GPU reads on the host."""
        renewed, diverged = torch.stack([self._renewed, self._diverged]).cpu()
        self._rows.from_the_start(renewed)
        self._rows.from_best(diverged, self._log_weights.cpu())
        self._renewed.zero_()
        self._diverged.zero_()

    def _copy_dense(self, source: Pool, target: Pool) -> None:
        if self._dense:
            here, there = source.columns(), target.columns()
            torch._foreach_copy_(
                [tensor[:, :, : self._dense] for tensor in there.values()],
                [tensor[:, :, : self._dense] for tensor in here.values()],
            )


def _fields(pool: Pool) -> list[Field]:
    """Return what a row of a pool's experts holds."""
    weight = pool.columns()["weight"]
    blank = torch.zeros(*weight.shape[:2], 1)
    state, everyone = fresh_state([blank]), slice(0, len(blank))
    fields = [Field("weight", everyone, blank[:, :, 0], of_run=False)]
    for name in BY_INPUT:
        fields.append(Field(name, everyone, getattr(state, name)[0][:, :, 0], of_run=False))
    found = pool.inner.init_state(blank, blank.dtype)
    for prefix, _, own in pool.inner.slices:
        for key in (key for key in found if key.startswith(prefix)):
            fields.append(Field(f"inner.{key}", own, found[key][:, :, 0], of_run=True))
    return fields
