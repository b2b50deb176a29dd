"""Checkpoints: the state and its place in the log in one file.

A file is a safetensors file whose metadata, ``funnel``, is JSON:

- ``state``: spec, rates, and the counts of batches and examples; with the tensors, all there is.
- ``sha256``: of the state alone, without progress, epoch or clock: equal states, equal digests.
- ``log``: where in which log the state is.
- ``drifts``: where in it the drift events are.
- ``numerics``: what the bits depend on besides.
- ``digest``: SHA-256 of the whole file with this value replaced by 64 tildes, so that any damaged
  bit is found, the place's included.

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
from streams.errors import FunnelError

BLANK = "~" * 64


class DamagedError(FunnelError, ValueError):
    """A checkpoint that cannot be trusted; the message says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """A copy of the state at one progress, on the host, that learning does not change any more."""

    spec: Spec
    hyperparameters: Hyperparameters
    version: int
    examples: int
    tensors: dict[str, Tensor]
    progress: Progress
    drifts: tuple[Position, ...] = ()
    """Positions of the drift events."""
    fold: int = FOLD_VERSION
    """Version of the fold that made the state."""

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
        """Return what belongs to the state besides the tensors."""
        return {
            "spec": asdict(self.spec),
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
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def numerics(device: torch.device) -> dict[str, str]:
    """Return what the bits of a step depend on besides state and batch."""
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
        "format": 1,
        "state": copy.summary(),
        "log": progress,
        "drifts": list(map(str, copy.drifts)),
        "fold": copy.fold,
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
        DamagedError: a bit is wrong, or the format is not known.
    """
    try:
        header = orjson.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        metadata = orjson.loads(header["__metadata__"]["funnel"])
        digest = metadata["digest"]
        if hashlib.sha256(raw.replace(digest.encode(), BLANK.encode(), 1)).hexdigest() != digest:
            raise DamagedError("its SHA-256 does not match")
        if metadata["format"] != 1:
            raise DamagedError(f"its format {metadata['format']} is not known to this version")
        state, log = metadata["state"], metadata["log"]
        progress = Progress(**log | {"position": Position.parse(log["position"])})
        copy = Checkpoint(
            Spec.of(state["spec"]),
            Hyperparameters.of(state["rates"]),
            state["version"],
            state["examples"],
            load_tensors(raw),
            progress,
            tuple(map(Position.parse, metadata.get("drifts", ()))),
            metadata.get("fold", 1),
        )
    except DamagedError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"it cannot be read ({error})") from error
    return copy, metadata
