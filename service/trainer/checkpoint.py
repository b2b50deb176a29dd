"""Checkpoints: the state and its progress along the log in one file.

The rows of large tables are in other files, which checkpoints share (see `service.trainer.chunks`).

A file is a safetensors file whose metadata, ``funnel``, is JSON:

- ``format``: of names, shapes and metadata. Formats from 1 on are read, too (see
  `service.trainer.formats`). It is 6 with chunks, and 5 without;
  7 with labels of questions, 8 with commands of operators, 9 if a promotion is among them, and 10
  if a rebuild is.
- ``fold``: version of the arithmetic that made the state; 1 where it is missing.
- ``state``: spec, hyperparameters (``rates``), and the counts of batches and examples. Together
  with the tensors this is all of it.
- ``sha256``: of the state alone, without progress, epoch or clock: equal states, equal digests.
  Large tables are in it by the digests of their blocks, so that those that have not changed need
  not be looked at.
- ``chunks``: where the rows of large tables are, if there are any.
- ``log``: which log the state has learned from, and how far.
- ``drifts``: positions of the drift events in the log.
- ``joined``: true if the tensor ``joins`` holds what cuts have decided on labels of questions (see
  `service.trainer.joining.joins`), as bytes of JSON. The format is 7 then.
- ``commands``: the newest commands of operators, each with the number of its cut, its name, who
  gave it, when, and the learner that it promotes; missing without any. The format is 8 then, and 9
  if one promotes a learner. The tensor ``promoted`` names the learner that answers, if it is not
  the one with which the model began.
- ``byte_examples``: how many of the examples had uint8 features; missing if that is not known.
- ``numerics``: the versions and hardware on which the bits depend.
- ``digest``: SHA-256 of the whole file with this value replaced by 64 tildes, so that any damaged
  bit is detected, in the metadata, too.

Nothing is pickled.
"""

import hashlib
import platform
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from funnel.pool.fused import linear
from funnel.pool.tables.table import COUNTS, KEYS
from service.fold.spec import FOLD_VERSION, Hyperparameters, Spec
from service.fold.state import PROMOTED, State
from service.log.cuts import Ordered, Promote, Rebuild
from service.log.position import ORIGIN, EntryId, Position, Progress
from service.trainer.blocks import Bytes
from service.trainer.chunks import Ledger, Manifest, Read, TableCopy
from service.trainer.formats import from_format_1, from_format_2, from_format_4
from service.trainer.joining.joins import Joins
from streams.errors import FunnelError

FORMAT, PROMOTING, ORDERED, LABELLED, CHUNKED, WHOLE = 10, 9, 8, 7, 6, 5
"""Formats of files with commands of operators, of which one rebuilds the state, one promotes a
learner, or none does; and without: with labels of questions, and without these, with and without
chunks."""
JOINS = "joins"
"""Name of the tensor that holds what was decided on labels of questions."""
TABLE = KEYS.partition(".")[0] + "."
"""The start of the names of a table's tensors, after that of its learner."""
BLANK = "~" * 64
STEPS = "steps"
"""Name of what compiled steps depend on, among the numerics."""


class DamagedError(FunnelError, ValueError):
    """A checkpoint that cannot be trusted; the message says what is wrong with it."""


class NewerError(FunnelError):
    """A checkpoint that a newer version of Funnel has written; the message names what differs."""


@dataclass(frozen=True)
class Checkpoint:
    """A copy of the state and its progress, on the host, which learning no longer changes."""

    spec: Spec
    hyperparameters: Hyperparameters
    version: int
    examples: int
    tensors: dict[str, Tensor]
    progress: Progress
    drifts: tuple[Position, ...] = ()
    """Positions of the drift events."""
    fold: int = FOLD_VERSION
    """Version of the arithmetic that made the state."""
    tables: Mapping[str, TableCopy] = field(default_factory=dict)
    """Large tables, of which only blocks were copied, by the start of their names; their other
    tensors are not among ``tensors``."""
    byte_examples: int | None = None
    """Examples with uint8 features (see `service.fold.state.State`); None if that is not known."""
    joins: Joins = field(default_factory=Joins)
    """The decisions of cuts on labels of questions; no part of the digest."""
    commands: tuple[Ordered, ...] = ()
    """The newest commands of operators; no part of the digest."""

    @classmethod
    def of(
        cls,
        state: State,
        progress: Progress,
        ledger: Ledger | None = None,
        joins: Joins | None = None,
        commands: tuple[Ordered, ...] = (),
    ) -> "Checkpoint":
        """Copy the state; waits for the device.

        Args:
            state: the state.
            progress: its own.
            ledger: of large tables, only what the next checkpoint has to look at is copied; without
                it, everything.
            joins: what was decided on labels of questions.
            commands: the newest commands of operators.
        """
        tables = {}
        if ledger is not None:
            for start, table in state.tables().items():
                if (one := ledger.copy(start, table)) is not None:
                    tables[start] = one
        tensors = {
            k: v.detach().to("cpu", copy=True).contiguous()
            for k, v in state.tensors().items()
            if not _is_of(k, tables)
        }
        state.drift.settle()
        return cls(
            state.spec,
            state.hyperparameters,
            state.version,
            state.examples,
            tensors | state.drift.tensors(),
            progress,
            state.drift.positions(),
            tables=tables,
            byte_examples=state.byte_examples,
            joins=Joins() if joins is None else joins.copy(),
            commands=commands,
        )

    def apart(self, ledger: Ledger) -> "Checkpoint":
        """Return this checkpoint with its large tables apart."""
        tables = dict(self.tables)
        for name in self.tensors:
            if name.endswith(KEYS) and (start := name.removesuffix(KEYS)) not in tables:
                own = {
                    k.removeprefix(start): v for k, v in self.tensors.items() if _is_of(k, [start])
                }
                if (one := ledger.whole(start, own)) is not None:
                    tables[start] = one
        tensors = {k: v for k, v in self.tensors.items() if not _is_of(k, tables)}
        return replace(self, tensors=tensors, tables=tables)

    def summary(self) -> dict[str, Any]:
        """Return the part of the state that is not tensors."""
        return {
            "spec": self.spec.fields(),
            "rates": self.hyperparameters.fields(),
            "version": self.version,
            "examples": self.examples,
        }

    def sha256(self, digests: Mapping[str, Bytes] | None = None) -> str:
        """Return the digest of the state: names, dtypes, shapes and bytes of all tensors, sorted,
        and `summary`; nothing of the progress. Large tables are in it by their blocks' digests.

        Args:
            digests: of the blocks of ``tables``, if they are known.
        """
        if digests is None:
            whole = self.apart(Ledger())
            return whole.sha256({start: one.digests() for start, one in whole.tables.items()})
        digest = hashlib.sha256(orjson.dumps(self.summary(), option=orjson.OPT_SORT_KEYS))
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            if tensor.numel():  # torch cannot view nothing as bytes
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        for start, own in sorted(digests.items()):
            one = self.tables[start]
            digest.update(f"\n{start}{TABLE} {one.rows} {list(one.layout.fields)}\n".encode())
            digest.update(own.tobytes())
        return digest.hexdigest()


def _is_of(name: str, starts: Collection[str]) -> bool:
    """Return whether a tensor has the rows of a table, or their keys."""
    return any(name.startswith(start + TABLE) and name != start + COUNTS for start in starts)


def numerics(device: torch.device, compiled: bool = False) -> dict[str, str]:
    """Return all that the bits of a step depend on, apart from state and batch.

    Args:
        device: where the model learns.
        compiled: whether compiled steps take its batches, wherever there are any
            (`funnel.pool.fused.linear`).
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    steps = {STEPS: linear.numerics()} if compiled else {}
    return steps | {
        "torch": torch.__version__,
        "device": name,
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }


def encode(
    copy: Checkpoint, sha256: str, numerics: dict[str, str], manifest: Manifest | None = None
) -> bytes:
    """Return the bytes of a checkpoint.

    Args:
        copy: the checkpoint.
        sha256: its digest.
        numerics: see `numerics`.
        manifest: where the blocks of its large tables are; None if it has none apart.
    """
    progress = asdict(copy.progress) | {"position": str(copy.progress.position)}
    asked = progress.pop("asked")
    if asked != ORIGIN:
        progress["asked"] = str(asked)
    metadata = {
        "format": CHUNKED if manifest else WHOLE,
        "fold": copy.fold,
        "state": copy.summary(),
        "log": progress,
        "drifts": list(map(str, copy.drifts)),
        "numerics": numerics,
        "sha256": sha256,
        "digest": BLANK,
    }
    tensors = copy.tensors
    if copy.byte_examples is not None:
        metadata["byte_examples"] = copy.byte_examples
    if manifest:
        metadata["chunks"] = manifest.to_json()
        tensors = tensors | manifest.tensors()
    if copy.joins:
        metadata |= {"format": LABELLED, "joined": True}
        raw = bytearray(copy.joins.to_json())
        tensors = tensors | {JOINS: torch.frombuffer(raw, dtype=torch.uint8)}
    if copy.commands:
        commands = [one.to_json() for one in copy.commands]
        is_promoted = any(isinstance(one.order, Promote) for one in copy.commands)
        is_promoted |= PROMOTED in copy.tensors
        metadata |= {"format": PROMOTING if is_promoted else ORDERED, "commands": commands}
        if any(isinstance(one.order, Rebuild) for one in copy.commands):
            metadata["format"] = FORMAT
    text = orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS).decode()
    found = save_tensors(tensors, {"funnel": text})
    return found.replace(BLANK.encode(), hashlib.sha256(found).hexdigest().encode(), 1)


class Decoded(NamedTuple):
    """The content of the bytes of a checkpoint."""

    copy: Checkpoint
    """Without the rows of tables that are in chunks."""
    metadata: dict[str, Any]
    manifest: Manifest | None
    """Where those are; None if there are none."""

    def whole(self, read: Read) -> Checkpoint:
        """Return the checkpoint with all rows.

        Args:
            read: of chunks.

        Raises:
            DamagedError: a chunk is damaged.
            OSError: a chunk cannot be read.
        """
        tensors = dict(self.copy.tensors)
        if self.manifest:
            for start, base in self.manifest.tables.items():
                try:
                    rows = base.read(read)
                except (SafetensorError, ValueError, KeyError, IndexError) as error:
                    raise DamagedError(str(error)) from error
                tensors |= {start + name: tensor for name, tensor in rows.items()}
        return replace(self.copy, tensors=tensors)


def decode(raw: bytes) -> Decoded:
    """Return what is in the bytes of a checkpoint.

    Raises:
        DamagedError: a bit is wrong.
        NewerError: a newer version of Funnel has written it.
    """
    try:
        header = orjson.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        metadata = orjson.loads(header["__metadata__"]["funnel"])
        digest = metadata["digest"]
        if hashlib.sha256(raw.replace(digest.encode(), BLANK.encode(), 1)).hexdigest() != digest:
            raise DamagedError("its SHA-256 does not match")
        kind, fold = metadata["format"], metadata.get("fold", 1)
        if kind > FORMAT or fold > FOLD_VERSION:
            raise NewerError(
                f"it is of version {fold} of the fold, in format {kind}; this process executes "
                f"version {FOLD_VERSION} and reads formats up to {FORMAT}: upgrade it"
            )
        state, log = metadata["state"], metadata["log"]
        spec, rates = Spec.of(state["spec"]), Hyperparameters.of(state["rates"])
        tensors = load_tensors(raw)
        joins = Joins()
        if metadata.get("joined"):
            joins = Joins.from_json(tensors.pop(JOINS).numpy().tobytes())
        manifest = Manifest.of(metadata["chunks"], tensors) if "chunks" in metadata else None
        if kind == 1:
            tensors = from_format_1(tensors, spec, rates)
        if kind <= 2:
            tensors = from_format_2(tensors)
        if kind <= 4:
            tensors = from_format_4(tensors)
        asked = EntryId.parse(log.get("asked", str(ORIGIN)))
        read = {"position": Position.parse(log["position"]), "asked": asked}
        progress = Progress(**log | read)
        version, examples = state["version"], state["examples"]
        drifts = tuple(map(Position.parse, metadata.get("drifts", ())))
        copy = Checkpoint(
            spec,
            rates,
            version,
            examples,
            tensors,
            progress,
            drifts,
            fold,
            byte_examples=metadata.get("byte_examples"),
            joins=joins,
            commands=tuple(map(Ordered.from_json, metadata.get("commands", ()))),
        )
    except (DamagedError, NewerError):
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"it cannot be read ({error})") from error
    return Decoded(copy, metadata, manifest)
