"""A pool over a larger copy of its module: more inputs, more classes, and all that it learned.

A table of rows grows with its pool.
"""

import torch
from torch import Tensor, nn

from funnel.pool.pool import Pool
from funnel.pool.tables.table import Table


@torch.no_grad()
def grown(pool: Pool, module: nn.Module, features: int) -> Pool:
    """Return a pool over a larger module, whose leading coordinates are those of a pool.

    Every tensor of the state lies, bit for bit, in the leading part of its larger successor; the
    rest is as in a new pool of the module. New classes whose bias the module has closed
    (`funnel.pool.classes.close_`) change no probability. Learning rates stay: give others to
    `Pool.set_experts` if the inputs are wider now.

    Args:
        pool: it does not change.
        module: linear layers with ReLU between them, as many as the pool has, none of them smaller.
        features: width of its inputs.

    Raises:
        ValueError: one of the modules is of another kind, or a layer is smaller than the pool's.
    """
    larger = Pool(
        module, features, pool.experts, pool.mixing.rate, pool.mixing.switch_rates, pool.loss
    )
    if not (pool.models.is_plain and larger.models.is_plain):
        raise ValueError("only linear layers with ReLU between them can grow")
    before, after = pool.tensors(), larger.tensors()
    if before.keys() != after.keys():
        raise ValueError("a pool cannot grow into a module with other layers")
    for name, old in before.items():
        if any(o > n for o, n in zip(old.shape, after[name].shape, strict=True)):
            raise ValueError(
                f"{name} cannot shrink from {tuple(old.shape)} to {tuple(after[name].shape)}"
            )
    for name, old in before.items():
        _lead(after[name], old)
    for new, old in zip(larger.restart.blanks(), pool.restart.blanks(), strict=True):
        _lead(new, old)
    for mine, theirs in zip(larger.alignment, pool.alignment, strict=True):
        for new, old in zip(mine, theirs, strict=True):
            new.copy_(old)
    larger.execution = pool.execution
    return larger


@torch.no_grad()
def grown_table(table: Table, pool: Pool) -> Table:
    """Return a table over a pool that has grown from a table's own.

    Every number of a row lies, bit for bit, in the leading part of its larger successor.

    Args:
        table: it does not change.
        pool: as `grown` returned it.
    """
    larger = Table(pool, table.bits, table.active)
    index = table.index
    larger.index.restore(index.keys, index.row_visits, index.visits, index.collided)
    larger.rows.start(table.rows.used)
    after = larger.rows.named()
    for name, old in table.rows.named().items():
        _lead(after[name], old)
    return larger


def _lead(larger: Tensor, tensor: Tensor) -> None:
    """Copy a tensor into the leading part of a larger one."""
    larger[tuple(slice(size) for size in tensor.shape)] = tensor
