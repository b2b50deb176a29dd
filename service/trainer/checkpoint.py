"""Checkpoints: the state and its place in the log in one file, written atomically.

A file is a safetensors file whose metadata, ``funnel``, is JSON:

- ``state``: spec, rates, and the counts of batches and examples; with the tensors, all there is.
- ``sha256``: of the state alone, without progress, epoch or clock: equal states, equal digests.
- ``log``: where in which log the state is.
- ``drifts``: where in it the drift events are.
- ``numerics``: what the bits depend on besides.
- ``digest``: SHA-256 of the whole file with this value replaced by 64 tildes, so that any damaged
  bit is found, the place's included.

Files are named by epoch and cut and never overwritten. Nothing is pickled.
"""

import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from service.log.position import Position, Progress

KEPT = 3
"""Files kept in a directory; the log is trimmed behind the oldest."""
BLANK = "~" * 64
SCRAP = ".writing-"
"""Begins the names of files that are not whole yet."""
NAME = re.compile(r"checkpoint-(\d{8})-(\d{14})\.safetensors")


class DamagedError(ValueError):
    """A checkpoint that cannot be trusted; the message says what is wrong with it."""


class UnreadableError(OSError):
    """Checkpoints that cannot be read as things are; nothing is wrong with them."""


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


@dataclass(frozen=True)
class Info:
    """A file that was written."""

    path: Path
    version: int
    progress: Progress
    bytes: int
    sha256: str


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


class CheckpointStore:
    """The checkpoints of one model in one directory.

    Args:
        directory: made if it is not there.
        numerics: goes into every file; see `numerics`.
        warn: told about damaged files and differing numerics.
    """

    def __init__(
        self, directory: Path, numerics: dict[str, str], warn: Callable[[str], None]
    ) -> None:
        self.directory, self.numerics, self._warn = directory, numerics, warn
        directory.mkdir(parents=True, exist_ok=True)
        self._infos: dict[Path, Info] = {}
        self._seen: list[Path] = []
        self._unread: set[Path] = set()

    def files(self) -> list[Path]:
        """Return the files there are, oldest first.

        Raises:
            UnreadableError: the directory cannot be read.
        """
        try:
            return sorted(p for p in self.directory.iterdir() if NAME.fullmatch(p.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(error) from error

    @property
    def has_news(self) -> bool:
        """Whether there are other files than at the last `load` or `write`."""
        return self.files() != self._seen

    def clear_scraps(self) -> None:
        """Remove what writers left behind that were killed; only while nobody writes."""
        for scrap in self.directory.glob(f"{SCRAP}*"):
            scrap.unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """Return the newest good checkpoint, or None if there never was one.

        Raises:
            DamagedError: there are files, but none of them is good.
            UnreadableError: none is, and some of them cannot be read.
        """
        newest: Checkpoint | None = None
        unread: dict[Path, OSError] = {}
        files = self._seen = self.files()
        for path in reversed(files):
            try:
                raw = path.read_bytes()
                copy, metadata = decode(raw)
            except FileNotFoundError:
                continue  # the learner that we stand by for has removed it by now
            except DamagedError as error:
                self._warn(f"checkpoint {path.name} is damaged and passed over: {error}")
                continue
            except OSError as error:
                if path not in self._unread:
                    self._warn(f"checkpoint {path.name} cannot be read and is passed over: {error}")
                unread[path] = error
                continue
            self._infos[path] = Info(
                path, copy.version, copy.progress, len(raw), metadata["sha256"]
            )
            if newest is None:
                newest = copy
                self._compare(metadata["numerics"], path)
        self._unread = set(unread)
        if unread and newest is None:
            self._seen = []  # to be looked at again
            raise _unreadable(next(iter(unread.values())))
        if files and newest is None:
            raise DamagedError(
                f"none of the {len(files)} checkpoints in {self.directory} is good. Put back one "
                "from a backup, or move them away to learn again from what the log still holds"
            )
        return newest

    def _compare(self, theirs: dict[str, str], path: Path) -> None:
        if different := [k for k in self.numerics if self.numerics[k] != theirs.get(k)]:
            changes = ", ".join(f"{k} {theirs.get(k)} -> {self.numerics[k]}" for k in different)
            self._warn(
                f"checkpoint {path.name} was written under other numerics ({changes}): "
                "replay from it may differ in the last bits"
            )

    def write(self, copy: Checkpoint) -> Info:
        """Write a checkpoint, and forget those before the last KEPT.

        Raises:
            OSError: the disk is full, or cannot be written; nothing is changed then.
        """
        path = self.directory / (
            f"checkpoint-{copy.progress.epoch:08d}-{copy.progress.cut:014d}.safetensors"
        )
        if path in self._infos and path.exists():
            return self._infos[path]
        sha256 = copy.sha256()
        raw = encode(copy, sha256, self.numerics)
        write_atomically(path, raw)
        self._infos[path] = Info(path, copy.version, copy.progress, len(raw), sha256)
        outdated = self.files()[:-KEPT]
        for old in outdated:
            old.unlink()
            self._infos.pop(old, None)
        self._seen = sorted({*self._seen, path} - set(outdated))
        return self._infos[path]

    def oldest(self) -> Progress | None:
        """Return the place that the log must still reach back to."""
        known = [self._infos.get(path) for path in self.files()]
        if not known or None in known:
            return None
        return min((i.progress for i in known if i), key=lambda progress: progress.cut)


def _unreadable(error: OSError) -> UnreadableError:
    owner = (
        ". They must belong to the user that the service runs as, in its container 10001"
        if isinstance(error, PermissionError)
        else ""
    )
    return UnreadableError(f"the checkpoints cannot be read: {error}{owner}")


def encode(copy: Checkpoint, sha256: str, numerics: dict[str, str]) -> bytes:
    """Return the bytes of a checkpoint."""
    progress = asdict(copy.progress) | {"position": str(copy.progress.position)}
    metadata = {
        "format": 1,
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
        )
    except DamagedError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"it cannot be read ({error})") from error
    return copy, metadata


def write_atomically(path: Path, raw: bytes) -> None:
    """Write a file so that after a crash it is there whole or not at all.

    Raises:
        OSError: it could not be written; no temporary file is left then.
    """
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=SCRAP)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
