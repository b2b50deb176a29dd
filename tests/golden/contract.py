"""The contract as data: routes, metrics, keys and fields, settings, error codes, commands."""

import argparse
import ast
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from streams.batch import Batch
from tests.golden import configurations as service
from tests.golden.compare import HERE
from tests.golden.data import CLASSES, FEATURES, examples
from tests.golden.folders import as_json, send
from tests.support.harness import RedisProcess, serving, wait_for

CONTRACT = HERE / "contract"
ROOT = HERE.parents[1]
PROSE = ("title", "summary", "description")
KEYS = {"api_key": "one", "learn_key": "two", "predict_key": "three"}
LOG = "funnel:{logistic}:log"
N, SHIFT_AT, LAST = 100, 30, 80
HELD = 3
"""Batches that the guard holds back: two at the shift, and one with wrong labels."""
OPTIONS = {
    "features": FEATURES, "classes": CLASSES, "batch_size": N, "max_wait_ms": 10, "seed": 3,
    "optimizer": "pool", "shadow": "adagrad,funnel", "loss_guard": 3.0, "device": "cpu",
}  # fmt: skip


@dataclass(frozen=True)
class Driven:
    """Observations of a service that learned, with shadows, from all kinds of entries."""

    metrics: str
    keys: dict[str, Any]
    metadata: dict[str, Any]
    answers: dict[str, Any]


def drive(directory: Path) -> Driven:
    """Run a service on a server of its own, and use all of it."""
    redis = RedisProcess(directory / "redis").start()
    try:
        with (
            redis.client() as direct,
            serving(directory, **OPTIONS, redis_url=redis.url) as running,
            running.client() as client,
        ):
            keys = _use(client, direct)
            answers = {
                path: _shape(client.get(path).raise_for_status().json())
                for path in ("/model", "/optimizer", "/drift", "/health/ready")
            }
            newest = max((directory / "data/checkpoints").rglob("*.safetensors"))
            return Driven(client.get("/metrics").text, keys, _metadata(newest), answers)
    finally:
        redis.kill()


def _use(client: httpx.Client, direct: Redis) -> dict[str, Any]:
    """Send examples in all ways; return the keys of the log before it is trimmed."""
    for k in range(LAST):
        send(client, Batch(*examples(5_000 + k, N, int(k >= SHIFT_AT))))
    send(client, Batch(*examples(6_000, N, 3)), "?wait=applied")  # the guard holds it back
    direct.xadd(LOG, {"json": as_json(Batch(*examples(6_001, N, 1)))})
    direct.xadd(LOG, {"batch": Batch(*examples(6_002, N, 1)).to_bytes(), "source": "http"})
    direct.xadd(LOG, {"batch": Batch(*examples(6_003, N, 1)).to_bytes()})
    direct.xadd(LOG, {"nonsense": b"\x00"})
    wait_for(lambda: direct.xlen("funnel:{logistic}:dead") == 1 + HELD)
    last = Batch(*examples(6_004, N, 1))
    send(client, last, "?wait=applied", **{"Idempotency-Key": "contract"})
    client.post("/predict", json={"features": last.features.tolist()}).raise_for_status()
    keys = _keys(direct)
    client.post("/checkpoint").raise_for_status()
    kind = {"Content-Type": "application/json"}
    assert client.post("/learn", content=b"x", headers=kind).status_code == 422
    assert client.get("/nothing/here").status_code == 404
    version = client.get("/model").json()["model_version"]
    wait_for(lambda: f"funnel_model_version {version:.1f}" in client.get("/metrics").text)
    return keys


def static() -> dict[str, Callable[[], Any]]:
    """Return the snapshots that need no running service, by the names of their files."""
    return {
        "openapi": lambda: without_prose(service.openapi()),
        "openapi_keys": lambda: without_prose(service.openapi(**KEYS)),
        "openapi_demo": lambda: without_prose(service.openapi(is_demo=True)),
        "settings": service.settings,
        "error_codes": lambda: sorted(error_codes()),
        "commands": lambda: {name: _options(p) for name, p in service.commands().items()},
    }


def seen(driven: Driven) -> dict[str, Any]:
    """Return the snapshots of a driven service, by the names of their files."""
    return {
        "metrics": _metrics(driven.metrics),
        "log": driven.keys,
        "checkpoint": driven.metadata,
        "answers": driven.answers,
    }


def without_prose(document: Any) -> Any:
    """Return an OpenAPI document without its free text and its version."""
    found = _structure(document)
    del found["info"]
    return found


def _structure(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: _structure(v) for k, v in value.items() if not (k in PROSE and isinstance(v, str))
        }
    return [_structure(v) for v in value] if isinstance(value, list) else value


def _metrics(text: str) -> dict[str, Any]:
    """Return by family its type, and by sample its labels with the values that they take."""
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(text):
        samples: dict[str, dict[str, set[str]]] = {}
        for sample in family.samples:
            labels = samples.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
        found[family.name] = {
            "type": family.type,
            "samples": {
                name: {label: sorted(values) for label, values in labels.items()}
                for name, labels in samples.items()
            },
        }
    return found


def _keys(direct: Redis) -> dict[str, Any]:
    """Return by key its type, the sets of fields of its entries, and the shapes of its JSON."""
    found: dict[str, Any] = {}
    for name in sorted(direct.keys("*")):
        key, kind = name.decode(), direct.type(name).decode()
        if ":key:" in key:
            head, _, tail = key.rpartition(":")
            key = f"{head}:<{len(tail)} digits>"
        if kind != "stream":
            found[key] = {"type": kind, "expires": direct.ttl(name) > 0}
            continue
        entries = [fields for _, fields in direct.xrange(name)]
        fields = {tuple(f.decode() for f in entry) for entry in entries}
        found[key] = {"type": kind, "fields": sorted(map(list, fields))}
        if cuts := [json.loads(entry[b"cut"]) for entry in entries if b"cut" in entry]:
            assert all(cut.keys() == cuts[0].keys() for cut in cuts)
            found[key]["cut"] = sorted(cuts[0])
            found[key]["sources"] = sorted({s for cut in cuts for s in cut["sources"]})
            commands = [json.loads(cut["command"]) for cut in cuts if cut["command"]]
            found[key]["commands"] = [_shape(command) for command in commands]
    return found


def _metadata(path: Path) -> dict[str, Any]:
    """Return the shape of a checkpoint's metadata, its format and the pattern of its name."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    metadata = json.loads(header["__metadata__"]["funnel"])
    digits = "".join("0" if c.isdigit() else c for c in path.name)
    folder = str(path.parent.relative_to(path.parents[2]))
    return {
        "file": digits,
        "folder": folder,
        "format": metadata["format"],
        "metadata": _shape(metadata),
        "tensors": sorted(set(header) - {"__metadata__"}),
    }


def _shape(value: Any) -> Any:
    """Return a JSON value with the names of types for values; of a list, the shapes in it."""
    if isinstance(value, dict):
        return {k: _shape(v) for k, v in value.items()}
    if isinstance(value, list):
        shapes = {json.dumps(_shape(v), sort_keys=True) for v in value}
        return [json.loads(shape) for shape in sorted(shapes)]
    return (
        "number" if isinstance(value, int | float) and value is not True else type(value).__name__
    )


def _options(parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """Return the options and arguments of a command, without their help; groups do not matter."""
    found: list[dict[str, Any]] = [
        {
            "options": list(action.option_strings),
            "argument": "" if action.option_strings else action.dest,
            "choices": list(action.choices) if action.choices is not None else None,
            "default": None if action.default is None else str(action.default),
            "nargs": action.nargs,
            "required": action.required,
        }
        for action in parser._actions
    ]
    return sorted(found, key=lambda option: (option["argument"], option["options"]))


def error_codes() -> set[str]:
    """Return the error codes in the source."""
    paths = [p for folder in service.SOURCES for p in (ROOT / folder).rglob("*.py")]
    return {code for path in paths for code in _codes_in(ast.parse(path.read_text()))}


def _codes_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            place = service.RAISERS.get(name or "")
            if place is not None:
                given = [k.value for k in node.keywords if k.arg == "code"]
                for value in given or node.args[place : place + 1]:
                    yield from _texts(value)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id in service.CODE_NAMES for t in targets):
                yield from _texts(node.value)


def _texts(value: ast.AST) -> Iterator[str]:
    """Return the texts that an expression may be, or that a table has for values."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from _texts(value.body)
        yield from _texts(value.orelse)
    elif isinstance(value, ast.Dict):
        for one in value.values:
            yield from _texts(one)
    elif isinstance(value, ast.Call):
        for one in value.args:
            yield from _texts(one)
