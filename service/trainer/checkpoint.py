"""Checkpoints: the state and its progress along the log in one file.

A file is a safetensors file whose metadata, ``funnel``, is JSON:

- ``format``: of names, shapes and metadata. Formats 1 and 2 are read, too (see
  `service.trainer.formats`).
- ``fold``: version of the arithmetic that made the state; 1 where it is missing.
- ``state``: spec, hyperparameters (``rates``), and the counts of batches and examples. Together
  with the tensors this is all of it.
- ``sha256``: of the state alone, without progress, epoch or clock: equal states, equal digests.
- ``log``: which log the state has learned from, and how far.
- ``drifts``: positions of the drift events in the log.
- ``numerics``: the versions and hardware on which the bits depend.
- ``digest``: SHA-256 of the whole file with this value replaced by 64 tildes, so that any damaged
  bit is detected, in the metadata, too.

Nothing is pickled.
"""

import hashlib
import platform
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from service.fold.spec import FOLD_VERSION, Hyperparameters, Spec
from service.fold.state import State
from service.log.position import Position, Progress
from service.trainer.formats import from_format_1, from_format_2
from streams.errors import FunnelError

FORMAT = 3
BLANK = "~" * 64


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

    @classmethod
    def of(cls, state: State, progress: Progress) -> "Checkpoint":
        """Copy the state; waits for the device."""
        tensors = {
            k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.tensors().items()
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
        )

    def summary(self) -> dict[str, Any]:
        """Return the part of the state that is not tensors."""
        return {
            "spec": self.spec.fields(),
            "rates": asdict(self.hyperparameters),
            "version": self.version,
            "examples": self.examples,
        }

    def sha256(self) -> str:
        """Return the digest of the state: names, dtypes, shapes and bytes of all tensors, sorted,
        and `summary`; nothing of the progress."""
        digest = hashlib.sha256(orjson.dumps(self.summary(), option=orjson.OPT_SORT_KEYS))
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            if tensor.numel():  # torch cannot view nothing as bytes
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def numerics(device: torch.device) -> dict[str, str]:
    """Return all that the bits of a step depend on, apart from state and batch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "torch": torch.__version__,
        "device": name,
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }


def encode(copy: Checkpoint, sha256: str, numerics: dict[str, str]) -> bytes:
    """Return the bytes of a checkpoint."""
    progress = asdict(copy.progress) | {"position": str(copy.progress.position)}
    metadata = {
        "format": FORMAT,
        "fold": copy.fold,
        "state": copy.summary(),
        "log": progress,
        "drifts": list(map(str, copy.drifts)),
        "numerics": numerics,
        "sha256": sha256,
        "digest": BLANK,
    }
    text = orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS).decode()
    raw = save_tensors(copy.tensors, {"funnel": text})
    return raw.replace(BLANK.encode(), hashlib.sha256(raw).hexdigest().encode(), 1)


def decode(raw: bytes) -> tuple[Checkpoint, dict[str, Any]]:
    """Return the copy in the bytes of a checkpoint, and its metadata.

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
        if kind == 1:
            tensors = from_format_1(tensors, spec, rates)
        if kind <= 2:
            tensors = from_format_2(tensors)
        progress = Progress(**log | {"position": Position.parse(log["position"])})
        version, examples = state["version"], state["examples"]
        drifts = tuple(map(Position.parse, metadata.get("drifts", ())))
        copy = Checkpoint(spec, rates, version, examples, tensors, progress, drifts, fold)
    except (DamagedError, NewerError):
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"it cannot be read ({error})") from error
    return copy, metadata
