"""The rows of large tables as blocks of bytes, with digests.

A block is BLOCK rows, one after another: the key of a row, 8 bytes, and then its fields in the
order of their names, fp32. Where the last block has no more rows, it is zero.
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
from funnel.pool.tables.table import COUNTS, KEYS

LEAST_BYTES = 4 << 20
"""Bytes of the rows of a table from which on it is large."""
Bytes = npt.NDArray[np.uint8]

KEY_BYTES, NUMBER_BYTES, DIGEST_BYTES = 8, 4, 32


class Layout(NamedTuple):
    """What the bytes of a row are."""

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
            if name not in (KEYS, COUNTS):
                _, experts, units = tensor.shape
                found.append((name, experts, units))
        return cls(tuple(sorted(found)))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return KEY_BYTES + NUMBER_BYTES * sum(experts * units for _, experts, units in self.fields)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return BLOCK * self.row_bytes

    def to_bytes(self, tensors: Mapping[str, Tensor], first: int, stop: int) -> Bytes:
        """Return blocks, [stop - first, block_bytes].

        Args:
            tensors: of the rows of some blocks, with their keys; more may be among them.
            first: the first block, counted among these.
            stop: the one after the last.
        """
        keys = tensors[KEYS][first * BLOCK : stop * BLOCK]
        blocks = np.zeros((stop - first, self.block_bytes), dtype=np.uint8)
        rows = blocks.reshape(-1, self.row_bytes)[: len(keys)]
        rows[:, :KEY_BYTES] = _bytes_of(keys)
        at = KEY_BYTES
        for name, experts, units in self.fields:
            part = _bytes_of(tensors[name][first * BLOCK : stop * BLOCK])
            end = at + NUMBER_BYTES * experts * units
            rows[:, at:end] = part
            at = end
        return blocks

    def empty(self, rows: int) -> dict[str, Tensor]:
        """Return the tensors of so many rows that hold anything, by name, with their keys."""
        named = {name: torch.empty(rows, experts, units) for name, experts, units in self.fields}
        return {KEYS: torch.empty(rows, dtype=torch.int64), **named}

    def put(self, blocks: Bytes, numbers: Numbers, tensors: Mapping[str, Tensor]) -> None:
        """Write blocks into the tensors of all rows.

        Args:
            blocks: [b, block_bytes].
            numbers: of the blocks, int64 [b].
            tensors: as `empty` returned them.
        """
        own = (numbers[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        is_row = own < len(tensors[KEYS])
        rows = blocks.reshape(-1, self.row_bytes)[is_row]
        places = torch.from_numpy(own[is_row])
        tensors[KEYS][places] = _numbers(rows[:, :KEY_BYTES], torch.int64).view(-1)
        at = KEY_BYTES
        for name, experts, units in self.fields:
            end = at + NUMBER_BYTES * experts * units
            part = _numbers(rows[:, at:end], torch.float32).view(-1, experts, units)
            tensors[name][places] = part
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


def _bytes_of(tensor: Tensor) -> Bytes:
    """Return the bytes of each row, [rows, bytes]."""
    return tensor.reshape(len(tensor), -1).contiguous().view(torch.uint8).numpy()


def _numbers(rows: Bytes, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).view(dtype)
