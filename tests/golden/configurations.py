"""The only file of the golden tests that touches the internals of the service.

When names move, this file follows them; the golden files and their tests stay as they are.
"""

import argparse
import hashlib
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import SecretStr
from torch import Tensor

from service.cli import COMMANDS, make_parser
from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from service.fold.step import Fold
from service.http.app import create_app
from service.http.routes.demo import demo_router
from service.log.position import EntryId, Position, Progress
from service.service import Service
from service.settings import Settings, load_settings
from service.trainer.checkpoint import Checkpoint, decode, encode, numerics
from streams.batch import Batch
from streams.environment import PREFIX
from tests.golden.data import CLASSES, FEATURES, golden_batch

MODELS = {"logistic": "logistic", "mlp": "mlp", "restless": "tests.golden.restless:Restless"}
OPTIMIZERS = ("pool", "funnel", "sgd", "adagrad", "adagrad-ema", "rmsprop", "adam")
SHADOWS: dict[str, tuple[str, ...]] = {
    "pool": ("adagrad",), "funnel": ("pool",), "adagrad": ("adam:0.003",),
    "adagrad-ema": ("funnel",), "adam": ("sgd",),
}  # fmt: skip
GUARDED = ("pool", "funnel", "adam")
LR = {"sgd": 0.3, "adagrad": 0.3, "adagrad-ema": 0.2, "rmsprop": 0.01, "adam": 0.02}
MOMENTUM = {"sgd": 0.9, "funnel": 0.5, "adagrad-ema": 0.9}
NOT_STANDARDIZED = ("rmsprop",)
CHANGE_AT = 15
"""Number of the batch before which hyperparameters change."""
CPU = torch.device("cpu")
NAMES = [f"{optimizer}-{model}" for optimizer, model in product(OPTIMIZERS, MODELS)]


@dataclass(frozen=True)
class Golden:
    """A state that can be folded further and digested."""

    state: State

    def sha256(self, seen: int) -> str:
        """Return the digest that a checkpoint of the state names; ``seen`` batches were folded."""
        return self._copy(seen).sha256()

    def checkpoint(self, seen: int) -> bytes:
        """Return the bytes of a checkpoint of the state."""
        copy = self._copy(seen)
        return encode(copy, copy.sha256(), numerics(CPU))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by the names that checkpoints give them."""
        return {k: v.detach() for k, v in self.state.tensors().items()}

    def learned(self) -> dict[str, str]:
        """Return by learner a digest of what it has learned; see `learned_digest`."""
        named = self.tensors()
        shadows = {name: f"shadow.{name}." for name in self.state.shadows}
        found = {
            name: {k.removeprefix(p): v for k, v in named.items() if k.startswith(p)}
            for name, p in shadows.items()
        }
        found["served"] = {k: v for k, v in named.items() if not k.startswith("shadow.")}
        return {name: learned_digest(tensors) for name, tensors in found.items()}

    def fold(self, numbers: Iterable[int]) -> list[list[int | str | bool]]:
        """Fold batches of the golden stream; return what each step reports.

        Returns:
            For each step version, accuracy and loss as `float.hex`, and whether it was learned.
        """
        fold = Fold(self.state)
        reports: list[list[int | str | bool]] = []
        for k in numbers:
            if k == CHANGE_AT:
                self.state.set_hyperparameters(_changed(self.state.hyperparameters))
            batch = Batch(*golden_batch(k))
            report = fold.step(batch)
            self.state.drift.note(report, len(batch), self.state.examples, _position(k))
            accuracy, loss = float(report.accuracy), float(report.loss)
            reports.append([report.version, accuracy.hex(), loss.hex(), bool(report.kept)])
        return reports

    def _copy(self, seen: int) -> Checkpoint:
        examples = sum(len(golden_batch(k)[1]) for k in range(seen))
        return Checkpoint.of(
            self.state, Progress("golden", 1, seen, _position(seen - 1), seen, 0, examples, 0)
        )


def fresh(name: str) -> Golden:
    """Return the state that one of NAMES begins with."""
    optimizer, _, model = name.rpartition("-")
    hidden = (8,) if model == "mlp" else ()
    experts = 6 if optimizer == "pool" else 0
    standardize = optimizer not in NOT_STANDARDIZED
    spec = Spec(MODELS[model], FEATURES, CLASSES, hidden, optimizer, standardize, 3, experts)
    lr = LR.get(optimizer, 0.05)
    guard = 2.0 if optimizer in GUARDED else 0.0
    rates = Hyperparameters(
        lr, MOMENTUM.get(optimizer, 0.0), 0.03, 0.02, guard, SHADOWS.get(optimizer, ())
    )
    return Golden(State(spec, rates, CPU))


def opened(raw: bytes) -> Golden:
    """Return the state in the bytes of a checkpoint."""
    copy = decode(raw).copy
    state = State(copy.spec, copy.hyperparameters, CPU)
    state.load(copy.tensors, copy.version, copy.examples, copy.drifts)
    return Golden(state)


def _changed(rates: Hyperparameters) -> Hyperparameters:
    return replace(
        rates,
        lr=rates.lr / 2,
        gain_lr=2 * rates.gain_lr,
        loss_guard=1.5 if rates.loss_guard else 0.0,
    )


def _position(k: int) -> Position:
    return Position(EntryId(1 + k, 0))


def learned_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 of the bytes of weights and optimizer's state, sorted by parameter and field.

    Shapes do not matter, nor do prefixes: a single optimizer has the same digest as a pool that has
    nothing but it, whose tensors have a leading 1 and whose inner state's names have a number.

    Args:
        tensors: those of one learner.
    """
    found = []
    for name, tensor in tensors.items():
        if match := LEARNED.fullmatch(name):
            parameter, field = match["weight"] or match["parameter"], match["field"] or ""
            run = int(match["run"] or 0)
            raw = tensor.detach().contiguous().numpy().tobytes()
            found.append((parameter, field + (match["key"] or ""), run, raw))
    digest = hashlib.sha256()
    for parameter, field, _, raw in sorted(found):
        digest.update(f"\n{parameter} {field}\n".encode())
        digest.update(raw)
    return digest.hexdigest()


LEARNED = re.compile(
    r"model\.(?P<weight>.+)|optimizer\.(?P<parameter>.+?)\."
    r"(?:(?P<field>log_gain|log_scale|velocity|precond_ema|step)"
    r"|inner\.(?:(?P<run>\d+)\.)?(?P<key>\w+))"
)
"""Names of learned tensors. A run is a number of experts with equal inner optimizers."""


def fingerprint() -> dict[str, str]:
    """Return the properties of this machine that the bits of a step depend on.

    These are the ones that checkpoints name, and a digest of sample operations: processors with
    equal instructions may still get other kernels.
    """
    values = torch.arange(1.0, 24 * 12 + 1).reshape(24, 12).sin().abs() + 0.1
    weight, bias = values[:8] - 0.5, values[0, :8].clone()
    logits = torch.nn.functional.linear(values, weight, bias)
    parts = [
        logits, logits.relu().mT @ values, logits.log_softmax(1), logits.softmax(1), values.exp(),
        values.log(), values.rsqrt(), values.sqrt(), values.pow(1.7), values.mean(0), values.sum(),
        torch.linalg.vector_norm(values), torch.einsum("kn,nd->kd", logits.mT, values),
        torch.bmm(values.reshape(2, 12, 12), values.reshape(2, 12, 12)),
    ]  # fmt: skip
    digest = hashlib.sha256(b"".join(p.contiguous().numpy().tobytes() for p in parts))
    return numerics(CPU) | {"operations": digest.hexdigest(), "system": platform.system()}


def openapi(is_demo: bool = False, **options: Any) -> dict[str, Any]:
    """Return the OpenAPI document of a service with such settings, or of that of the demo."""
    more = [demo_router(cast(Any, None))] if is_demo else []  # the stream is not used
    return create_app(Service(load_settings(options)), more).openapi()


def settings() -> dict[str, str]:
    """Return the defaults of all settings by the names of their variables."""
    return {
        PREFIX + name.upper(): _shown(field.get_default())
        for name, field in Settings.model_fields.items()
    }


def _shown(default: Any) -> str:
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    return repr(default) if not isinstance(default, Path) else str(default)


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of all commands by name, that of no command as ''."""
    found = {"": make_parser()}
    for name in COMMANDS:
        for action in make_parser(name)._actions:
            if isinstance(action, argparse._SubParsersAction):
                found[name] = action.choices[name]
    return found


SOURCES = ("service",)
"""Folders whose source is searched for error codes."""
RAISERS = {"HTTPError": 1, "unavailable": 0, "ErrorDetail": 0}
"""Functions that make errors, and the index of the argument that is the code."""
CODE_NAMES = ("code", "codes", "CODES")
"""Variables that hold codes."""
