"""The rows of large tables in files of their own, called chunks, which checkpoints share.

A chunk holds blocks of one table that had changed. It is never overwritten. A checkpoint names, for
each block, a chunk and a place in it: the chunks are the base that it needs.

There are two sides, each with chunks of its own, and checkpoints are written to one and the other
in turn. So a checkpoint and the one before it share no file, and whatever single file is damaged,
one of them is good.

A chunk's name has its side and its SHA-256. A chunk of which less than half is still in use is
given up: the blocks that are, are written again. So they take at most about twice the bytes of the
table on each side.
"""

import hashlib
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from funnel.pool.tables.index import Numbers
from funnel.pool.tables.rows import Rows
from funnel.pool.tables.table import KEYS, Table
from service.trainer.blocks import (
    DIGEST_BYTES,
    Bytes,
    Layout,
    count_of,
    differing,
    digests_of,
    is_large,
)

SIDES = ("a", "b")
NAME = re.compile(r"chunk-([ab])-([0-9a-f]{64})\.safetensors")
CHUNK_BYTES = 32 << 20
"""Most bytes of the blocks of a chunk."""
MOST_SMALL = 16
"""Chunks of less than half of CHUNK_BYTES that a table has at most; beyond, they become one."""
PREFIX = "chunks."
"""The start of the names of tensors that say where blocks are."""

Read = Callable[[str], bytes]
"""Returns the bytes of a file by name."""
Write = Callable[[str, bytes], None]
"""Writes a file by name."""
Places = npt.NDArray[np.int32]


class DamagedChunkError(ValueError):
    """A chunk that is not what its name says; the message names it."""


@dataclass(frozen=True)
class Base:
    """Where the blocks of a table are."""

    layout: Layout
    rows: int
    digests: Bytes
    """SHA-256 of each block, [blocks, 32]."""
    chunks: tuple[str, ...]
    """Names of the files."""
    sizes: tuple[int, ...]
    """Blocks in each."""
    chunk: Places
    """Number of the chunk of each block, int32 [blocks]."""
    place: Places
    """Which of the chunk's blocks it is, int32 [blocks]."""

    def read(self, read: Read) -> dict[str, Tensor]:
        """Return the tensors of the table, apart from its counts.

        Raises:
            DamagedChunkError: a chunk is damaged.
            OSError: a chunk cannot be read.
        """
        tensors = self.layout.empty(self.rows)
        for number, name in enumerate(self.chunks):
            blocks = load_tensors(checked(name, read(name)))["blocks"].numpy()
            own = (self.chunk == number).nonzero()[0]
            self.layout.put(blocks[self.place[own]], own, tensors)
        return tensors

    def given_up(self, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return which chunks are to be given up, bool [chunks].

        Args:
            wanted: the blocks that will be written again anyway, bool; those beyond are gone.
        """
        own = self.chunk[: len(wanted)]
        used = np.bincount(own[~wanted], minlength=len(self.chunks))
        sizes = np.array(self.sizes, dtype=np.int64)
        found: npt.NDArray[np.bool_] = np.zeros(len(sizes), dtype=np.bool_)
        sparsest = np.argsort(used / sizes, kind="stable")
        sparse = sparsest[: (2 * used < sizes).sum()]
        more = used[sparse].cumsum() - used[sparse]  # at most as much again as is written anyway
        found[sparse[more <= wanted.sum()]] = True
        is_small = ~found & (used > 0) & (2 * sizes * self.layout.block_bytes < CHUNK_BYTES)
        if is_small.sum() > MOST_SMALL:
            found |= is_small
        return found


@dataclass(frozen=True)
class Manifest:
    """The chunks that a checkpoint needs."""

    side: str
    tables: Mapping[str, Base]
    """By the start of the names of the table's tensors: none if it is the served learner's."""
    written: int
    """Bytes of the chunks that were written for it."""

    @property
    def chunks(self) -> frozenset[str]:
        """Names of the files."""
        return frozenset(name for base in self.tables.values() for name in base.chunks)

    def tensors(self) -> dict[str, Tensor]:
        """Return what the checkpoint's file holds of it as tensors, by name."""
        found = {}
        for start, base in self.tables.items():
            for name in ("digests", "chunk", "place"):
                found[f"{PREFIX}{start}{name}"] = torch.from_numpy(getattr(base, name))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the rest of what the checkpoint's file holds of it."""
        tables = {
            start: {
                "rows": base.rows,
                "fields": base.layout.fields,
                "chunks": list(zip(base.chunks, base.sizes, strict=True)),
            }
            for start, base in self.tables.items()
        }
        return {"side": self.side, "written": self.written, "tables": tables}

    @classmethod
    def of(cls, json: Mapping[str, Any], tensors: dict[str, Tensor]) -> "Manifest":
        """Return what a checkpoint's file holds, and remove its tensors from the others.

        Raises:
            KeyError, TypeError, ValueError: the file holds something else.
        """
        tables = {}
        for start, table in json["tables"].items():
            digests, chunk, place = (
                tensors.pop(f"{PREFIX}{start}{name}").numpy()
                for name in ("digests", "chunk", "place")
            )
            layout = Layout(tuple((name, int(e), int(u)) for name, e, u in table["fields"]))
            names, sizes = [name for name, _ in table["chunks"]], [n for _, n in table["chunks"]]
            count = count_of(table["rows"])
            if (digests.shape, len(chunk), len(place)) != ((count, DIGEST_BYTES), count, count):
                raise ValueError(f"{table['rows']} rows have {count} blocks")
            if not all(map(NAME.fullmatch, names)):
                raise ValueError("it names files that are no chunks")
            tables[start] = Base(
                layout, table["rows"], digests, tuple(names), tuple(sizes), chunk, place
            )
        return cls(json["side"], tables, json["written"])


@dataclass(frozen=True)
class TableCopy:
    """A copy of the blocks of a large table that a checkpoint has to look at."""

    side: str
    """That of the checkpoint."""
    layout: Layout
    rows: int
    """Number of rows of the table."""
    tensors: Mapping[str, Tensor]
    """Rows of the copied blocks, with their keys."""
    numbers: Numbers
    """The copied blocks, int64, ascending."""
    known: Bytes
    """Digests of blocks, right for those that are not copied, [blocks, 32]."""
    base: Base | None = None
    """Where blocks were written before, if they were."""
    given_up: frozenset[int] = frozenset()
    """The base's chunks that are not to be used any more."""
    origin: "weakref.ref[Rows] | None" = None
    """The rows."""
    look: int = -1
    """The look at the rows when they were copied."""

    def digests(self) -> Bytes:
        """Return the digests of all blocks, [blocks, 32]."""
        found = self.known.copy()
        for first, stop in self._parts():
            own = self.layout.to_bytes(self.tensors, first, stop)
            found[self.numbers[first:stop]] = digests_of(own)
        return found

    def write(self, write: Write) -> Base:
        """Write the blocks that have changed, and return where all are.

        Args:
            write: called with each chunk.
        """
        digests, count = self.known.copy(), len(self.known)
        chunk, place = np.full(count, -1, dtype=np.int32), np.zeros(count, dtype=np.int32)
        names, sizes = list[str](), list[int]()
        if self.base is not None:
            n = min(count, len(self.base.chunk))
            chunk[:n], place[:n] = self.base.chunk[:n], self.base.place[:n]
            chunk[np.isin(chunk, list(self.given_up))] = -1
            names, sizes = list(self.base.chunks), list(self.base.sizes)
        waiting: list[Bytes] = []
        numbers: list[Numbers] = []

        def flush() -> None:
            own = np.concatenate(numbers)
            raw = save_tensors({"blocks": torch.from_numpy(np.concatenate(waiting))})
            name = f"chunk-{self.side}-{hashlib.sha256(raw).hexdigest()}.safetensors"
            write(name, raw)
            chunk[own], place[own] = len(names), np.arange(len(own))
            names.append(name)
            sizes.append(len(own))
            waiting.clear()
            numbers.clear()

        for first, stop in self._parts():
            own = self.numbers[first:stop]
            blocks = self.layout.to_bytes(self.tensors, first, stop)
            digests[own] = digests_of(blocks)
            changed = chunk[own] < 0
            if self.base is not None:
                known = own[~changed]
                changed[~changed] = differing(digests[known], self.base.digests[known])
            if sum(map(len, waiting)) + changed.sum() > self._most:
                flush()
            if changed.any():
                waiting.append(blocks[changed])
                numbers.append(own[changed])
        if waiting:
            flush()
        assert (chunk >= 0).all(), "every block is somewhere"
        used, numbered = np.unique(chunk, return_inverse=True)
        return Base(
            self.layout,
            self.rows,
            digests,
            tuple(names[k] for k in used),
            tuple(sizes[k] for k in used),
            numbered.astype(np.int32),
            place,
        )

    @property
    def _most(self) -> int:
        """Most blocks in a chunk."""
        return max(1, CHUNK_BYTES // self.layout.block_bytes)

    def _parts(self) -> list[tuple[int, int]]:
        """Return the copied blocks in parts of about a megabyte: the first, and after the last."""
        size = max(1, min(self._most, (1 << 20) // self.layout.block_bytes))
        count = len(self.numbers)
        return [(first, min(first + size, count)) for first in range(0, count, size)]


@dataclass
class Ledger:
    """The content of the chunks in a directory, and what is known of the tables of a state."""

    side: str = SIDES[0]
    """Side of the next checkpoint."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """The newest good one of each side."""
    _known: dict[str, tuple["weakref.ref[Rows]", int, Bytes]] = field(default_factory=dict)
    """By start of the names: rows that were looked at, the look, and the digests then."""

    def copy(self, start: str, table: Table) -> TableCopy | None:
        """Copy the blocks of a table that the next checkpoint has to look at; None if it is small.

        Args:
            start: of the names of the table's tensors.
            table: the table.
        """
        rows, layout = table.rows, Layout.of(table.tensors())
        if not is_large(layout, rows.used):
            return None
        count, base = count_of(rows.used), self._base(start, layout)
        wanted, known = np.ones(count, dtype=np.bool_), np.zeros((count, DIGEST_BYTES), np.uint8)
        origin, look, seen = self._known.get(start, (None, -1, known))
        if origin is not None and origin() is rows:
            n = min(count, len(seen))
            wanted[:n], known[:n] = False, seen[:n]
            wanted[rows.changed_since(look)] = True
        given_up = np.zeros(0, dtype=np.bool_)
        if base is not None:
            n = min(count, len(base.chunk))
            wanted[:n] |= differing(known[:n], base.digests[:n])
            wanted[n:] = True
            given_up = base.given_up(wanted[: len(base.chunk)])
            wanted[:n] |= given_up[base.chunk[:n]]
        else:
            wanted[:] = True
        numbers = wanted.nonzero()[0]
        return TableCopy(
            self.side,
            layout,
            rows.used,
            table.copied(numbers),
            numbers,
            known,
            base,
            frozenset(given_up.nonzero()[0].tolist()),
            weakref.ref(rows),
            rows.look(),
        )

    def whole(self, start: str, tensors: Mapping[str, Tensor]) -> TableCopy | None:
        """Return all of a table that was copied or loaded whole; None if it is small.

        Args:
            start: of the names of its tensors.
            tensors: without this start.
        """
        layout, rows = Layout.of(tensors), len(tensors[KEYS])
        if not is_large(layout, rows):
            return None
        known = np.zeros((count_of(rows), DIGEST_BYTES), np.uint8)
        base = self._base(start, layout)
        return TableCopy(self.side, layout, rows, tensors, np.arange(len(known)), known, base)

    def write(self, tables: Mapping[str, TableCopy], write: Write) -> Manifest:
        """Write the chunks of a checkpoint, and return what it needs.

        Args:
            tables: by the start of their names; there is one at least.
            write: called with each chunk.
        """
        bases, side, sizes = {}, next(iter(tables.values())).side, list[int]()

        def count(name: str, raw: bytes) -> None:
            write(name, raw)
            sizes.append(len(raw))

        for start, copy in tables.items():
            base = bases[start] = copy.write(count)
            if copy.origin is not None:
                self._known[start] = (copy.origin, copy.look, base.digests)
        return Manifest(side, bases, sum(sizes))

    def take(self, manifest: Manifest) -> None:
        """Note that a checkpoint is written, or was loaded."""
        self.manifests[manifest.side] = manifest
        self.side = SIDES[1 - SIDES.index(manifest.side)]

    def _base(self, start: str, layout: Layout) -> Base | None:
        manifest = self.manifests.get(self.side)
        base = manifest.tables.get(start) if manifest else None
        return base if base is not None and base.layout == layout else None


def checked(name: str, raw: bytes) -> bytes:
    """Return the bytes of a chunk.

    Raises:
        DamagedChunkError: they are not those that its name says.
    """
    if (found := NAME.fullmatch(name)) is None or hashlib.sha256(raw).hexdigest() != found[2]:
        raise DamagedChunkError(f"the SHA-256 of its {name} does not match")
    return raw
