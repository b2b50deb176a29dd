"""The rows of large tables as blocks of bytes, with digests.

A block is BLOCK rows, one after another: the key of a row and its visits, 8 bytes each, and then
its fields in the order of their names, fp32. Where the last block has no more rows, it is zero.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from funnel.pool.tables.index import Numbers
from funnel.pool.tables.rows import BLOCK
from funnel.pool.tables.table import COUNTS, KEYS, VISITS

LEAST_BYTES = 4 << 20
"""Bytes of the rows of a table from which on it is large."""
Bytes = npt.NDArray[np.uint8]

WIDE = (KEYS, VISITS)
"""The tensors of integers, one a row, each with the bytes of two numbers."""
WIDE_NUMBERS = 2 * len(WIDE)
NUMBER_BYTES, DIGEST_BYTES = 4, 32


class Layout(NamedTuple):
    """The meaning of the bytes of a row."""

    fields: tuple[tuple[str, int, int], ...]
    """Name, experts and units of each, in the order of the names."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Layout":
        """Return that of a table.

        Args:
            tensors: as `funnel.pool.tables.table.Table.tensors` returns them.
        """
        found = []
        for name, tensor in tensors.items():
            if name not in (*WIDE, COUNTS):
                _, experts, units = tensor.shape
                found.append((name, experts, units))
        return cls(tuple(sorted(found)))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        numbers = sum(experts * units for _, experts, units in self.fields)
        return NUMBER_BYTES * (WIDE_NUMBERS + numbers)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return BLOCK * self.row_bytes

    def to_bytes(self, tensors: Mapping[str, Tensor], first: int, stop: int) -> Bytes:
        """Return blocks, [stop - first, block_bytes].

        Args:
            tensors: of the rows of some blocks, with WIDE; more may be among them.
            first: the first block, counted among these.
            stop: the one after the last.
        """
        rows = len(tensors[KEYS][first * BLOCK : stop * BLOCK])
        blocks = np.zeros((stop - first, self.block_bytes), dtype=np.uint8)
        numbers = blocks.view(np.float32).reshape(-1, self.row_bytes // NUMBER_BYTES)[:rows]
        for place, name in enumerate(WIDE):
            integers = tensors[name][first * BLOCK : stop * BLOCK].numpy()
            numbers[:, 2 * place : 2 * place + 2] = integers.view(np.float32).reshape(-1, 2)
        at = WIDE_NUMBERS
        for name, experts, units in self.fields:
            end = at + experts * units
            part = tensors[name][first * BLOCK : stop * BLOCK].numpy()
            numbers[:, at:end] = part.reshape(-1, experts * units)
            at = end
        return blocks

    def empty(self, rows: int) -> dict[str, Tensor]:
        """Return the tensors of so many rows that hold anything, by name, with WIDE."""
        named = {name: torch.empty(rows, experts, units) for name, experts, units in self.fields}
        return {name: torch.empty(rows, dtype=torch.int64) for name in WIDE} | named

    def put(self, blocks: Bytes, numbers: Numbers, tensors: Mapping[str, Tensor]) -> None:
        """Write blocks into the tensors of all rows.

        Args:
            blocks: [b, block_bytes].
            numbers: of the blocks, int64 [b], ascending.
            tensors: as `empty` returned them.
        """
        own = (numbers[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        own = own[own < len(tensors[KEYS])]
        rows = blocks.view(np.float32).reshape(-1, self.row_bytes // NUMBER_BYTES)[: len(own)]
        integers = np.ascontiguousarray(rows[:, :WIDE_NUMBERS]).view(np.int64)
        for place, name in enumerate(WIDE):
            tensors[name].numpy()[own] = integers[:, place]
        at = WIDE_NUMBERS
        for name, experts, units in self.fields:
            end = at + experts * units
            tensors[name].numpy()[own] = rows[:, at:end].reshape(-1, experts, units)
            at = end


def is_large(layout: Layout, rows: int) -> bool:
    """Return whether a table is saved in chunks."""
    return rows > 0 and rows * layout.row_bytes >= LEAST_BYTES


def count_of(rows: int) -> int:
    """Return the number of blocks of so many rows."""
    return -(-rows // BLOCK)


def digests_of(blocks: Bytes) -> Bytes:
    """Return the SHA-256 of each block, [b, 32]."""
    found = b"".join(hashlib.sha256(block.data).digest() for block in blocks)
    return np.frombuffer(found, dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def differing(digests: Bytes, others: Bytes) -> npt.NDArray[np.bool_]:
    """Return which of some digests differ from others, bool [b]."""
    one, other = (np.ascontiguousarray(each).view(np.uint64) for each in (digests, others))
    found: npt.NDArray[np.bool_] = (one != other).any(axis=1)
    return found
