"""Whole data folders: checkpoints, and a log with cuts after the newest of them.

A log is stored as JSON and written back into a real server, key by key.
"""

import base64
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from redis import Redis

from streams.batch import Batch
from tests.golden.compare import HERE, read, write
from tests.golden.data import CLASSES, FEATURES, examples
from tests.support.harness import SAFETENSORS, RedisProcess, ServiceProcess, serving, wait_for

FOLDERS = HERE / "folder"
MODEL = "logistic"
LOG, CUTS = f"funnel:{{{MODEL}}}:log", f"funnel:{{{MODEL}}}:cuts"
ENTRY, BATCH = 30, 40
"""Examples of an entry and of a batch: most batches end within an entry."""
OPTIONS = {
    "features": FEATURES, "classes": CLASSES, "model": MODEL, "batch_size": BATCH,
    "max_wait_ms": 86_400_000, "checkpoint_every_seconds": 86_400.0, "seed": 3, "device": "cpu",
}  # fmt: skip
BEFORE: dict[str, dict[str, Any]] = {
    "pool": {"optimizer": "pool", "shadow": "adagrad", "loss_guard": 3.0},
    "funnel": {"optimizer": "funnel", "lr": 0.05, "momentum": 0.5, "loss_guard": 3.0},
}
AFTER: dict[str, dict[str, Any]] = {
    "pool": BEFORE["pool"] | {"loss_guard": 4.0},
    "funnel": BEFORE["funnel"] | {"lr": 0.02, "loss_guard": 4.0, "shadow": "sgd:0.1"},
}
"""Settings of the service when it starts again; a cut records the new hyperparameters."""
CURRENT, OLDER = ("pool-3", "funnel-3"), ("pool", "funnel")
"""Folders that this version of the fold has written, whose cuts it replays, and those of version 1,
whose cuts it refuses. An older one opens without the cuts behind its checkpoint, as a version that
was stopped leaves it."""
for _current, _older in zip(CURRENT, OLDER, strict=True):
    BEFORE[_current], AFTER[_current] = BEFORE[_older], AFTER[_older]
POISONED = range(34, 37)
"""Numbers of entries whose labels are wrong."""
KEY = {"Idempotency-Key": "golden"}
KEYED = 40
"""Number of the entry that was sent with the key."""


def entry(k: int, n: int = ENTRY, shift: int = 0) -> Batch:
    """Return the examples of an entry."""
    return Batch(*examples(1_000 + k, n, shift))


def send(client: httpx.Client, batch: Batch, wait: str = "", **headers: str) -> str:
    """Post examples; return the entry's id."""
    answer = client.post(f"/learn{wait}", content=batch.to_bytes(), headers=SAFETENSORS | headers)
    return str(answer.raise_for_status().json()["entry"])


def as_json(batch: Batch) -> str:
    """Return the examples as an entry's field ``json``."""
    return json.dumps({"features": batch.features.tolist(), "labels": batch.labels.tolist()})


def wait_until_learned(client: httpx.Client, sent: int) -> None:
    """Wait until all full batches of so many examples are learned."""
    whole = sent - sent % BATCH
    wait_for(lambda: client.get("/model").json()["examples_learned"] == whole)


def record(name: str) -> None:
    """Write a data folder: learn, checkpoint, learn, kill, change settings, learn, kill."""
    with tempfile.TemporaryDirectory() as scratch:
        redis = RedisProcess(Path(scratch) / "redis").start()
        try:
            _fill(Path(scratch), redis, name)
            with redis.client() as direct:
                write(FOLDERS / name / "log.json", dump(direct))
        finally:
            redis.kill()
        target = FOLDERS / name / "checkpoints"
        shutil.copytree(
            Path(scratch) / "data/checkpoints", target, ignore=shutil.ignore_patterns("lock")
        )


def _fill(directory: Path, redis: RedisProcess, name: str) -> None:
    options = OPTIONS | {"redis_url": redis.url}
    with (
        redis.client() as direct,
        serving(directory, **options, **BEFORE[name]) as service,
        service.client() as client,
    ):
        for k in range(25):
            send(client, entry(k))
        direct.xadd(LOG, {"batch": entry(25).to_bytes()})
        direct.xadd(LOG, {"json": as_json(entry(26)), "note": "by hand"})
        direct.xadd(LOG, {"nonsense": b"\x00\xff"})
        wait_until_learned(client, 27 * ENTRY)
        client.post("/checkpoint").raise_for_status()
        for k in range(27, 34):
            send(client, entry(k))
        direct.xadd(LOG, {"json": "{"})
        for k in POISONED:
            send(client, entry(k, shift=2))
        wait_until_learned(client, 37 * ENTRY)
    with serving(directory, **options, **AFTER[name]) as service, service.client() as client:
        wait_until_learned(client, 37 * ENTRY)
        for k in range(37, KEYED):
            send(client, entry(k, shift=1))
        send(client, entry(KEYED, shift=1), **KEY)
        wait_until_learned(client, (KEYED + 1) * ENTRY)
        wait_for(lambda: "funnel_dead_entries_total 2.0" in client.get("/metrics").text)


def reopen(scratch: Path, name: str) -> dict[str, Any]:
    """Open a data folder with a service and learn more; return all that can be observed."""
    redis = RedisProcess(scratch / "redis").start()
    try:
        service = put_back(scratch, redis, name, is_stopped=name in OLDER)
        service.start()
        try:
            with service.client() as client:
                return _seen(client)
        finally:
            service.kill()
    finally:
        redis.kill()


def put_back(scratch: Path, redis: RedisProcess, name: str, is_stopped: bool) -> ServiceProcess:
    """Write a data folder and its log back; return a service on them, which is not started.

    Args:
        scratch: where the folder goes.
        redis: the server of the log.
        name: of the folder.
        is_stopped: leave out the cuts behind the checkpoint.
    """
    keys = read(FOLDERS / name / "log.json")
    if is_stopped:
        keys[CUTS] = _until(keys[CUTS], checkpointed(name))
    with redis.client() as direct:
        restore(direct, keys)
    shutil.copytree(FOLDERS / name / "checkpoints", scratch / "data/checkpoints")
    return ServiceProcess(scratch, OPTIONS | AFTER[name] | {"redis_url": redis.url})


def checkpointed(name: str) -> int:
    """Return the number of the last cut that is in a folder's checkpoint."""
    (checkpoint,) = (FOLDERS / name / "checkpoints").rglob("*.safetensors")
    return int(checkpoint.stem.rpartition("-")[2])


def _until(cuts: dict[str, Any], last: int) -> dict[str, Any]:
    kept = [[i, fields] for i, fields in cuts["entries"] if int(i.split("-")[0]) <= last]
    return cuts | {"entries": kept, "last": f"{last}-0", "added": last}


def _seen(client: httpx.Client) -> dict[str, Any]:
    sent = (KEYED + 1) * ENTRY
    wait_until_learned(client, sent)
    opened = _state(client)
    repeated = send(client, entry(KEYED, shift=1), **KEY)
    for k in range(KEYED + 1, KEYED + 6):
        send(client, entry(k, shift=1))
    wait_until_learned(client, sent + 5 * ENTRY)
    probe = {"features": entry(999).features.tolist()}
    predicted = client.post("/predict", json=probe).raise_for_status().json()["labels"]
    return {
        "opened": opened, "repeated": repeated, "after": _state(client), "predicted": predicted,
    }  # fmt: skip


def _state(client: httpx.Client) -> dict[str, Any]:
    model = client.get("/model").raise_for_status().json()
    names = ("funnel_examples_total", "funnel_dead_entries_total", "funnel_batches_total",
             "funnel_nonfinite_batches_total", "funnel_quarantined_batches_total")  # fmt: skip

    def counts() -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines()]
        return {k: float(v) for k, v in lines if k.startswith(names)}

    wait_for(lambda: counts().get("funnel_batches_total") == model["model_version"])
    return {
        "sha256": client.post("/checkpoint").raise_for_status().json()["sha256"],
        "version": model["model_version"],
        "examples": model["examples_learned"],
        "counts": counts(),
    }


def dump(redis: Redis) -> dict[str, Any]:
    """Return the keys of the model: streams as they are, and strings; not the lease."""
    found: dict[str, Any] = {}
    for name in sorted(redis.keys("funnel:*")):
        key = name.decode()
        if key.endswith(":lease"):
            continue
        if redis.type(name) == b"string":
            ttl = redis.ttl(name)
            found[key] = {"value": _text(redis.get(name)), "expires": bool(ttl > 0)}
            continue
        info = redis.xinfo_stream(name)
        found[key] = {
            "entries": [
                [i.decode(), {_text(f): _text(v) for f, v in fields.items()}]
                for i, fields in redis.xrange(name)
            ],
            "last": info["last-generated-id"].decode(),
            "added": info["entries-added"],
            "deleted": info["max-deleted-entry-id"].decode(),
        }
    return found


def restore(redis: Redis, keys: dict[str, Any]) -> None:
    """Put back what `dump` returned; what expires does so in an hour."""
    for key, found in keys.items():
        if "value" in found:
            redis.set(key, _bytes(found["value"]), ex=3_600 if found["expires"] else None)
            continue
        for i, fields in found["entries"]:
            redis.xadd(key, {_bytes(f): _bytes(v) for f, v in fields.items()}, id=i)
        redis.execute_command(
            "XSETID", key, found["last"],
            "ENTRIESADDED", found["added"], "MAXDELETEDID", found["deleted"],
        )  # fmt: skip


def _text(raw: bytes) -> str:
    """Return bytes as text: printable ones as they are, others as base64."""
    text = raw.decode("latin-1")
    if text.isascii() and text.isprintable() and not text.startswith("base64:"):
        return text
    return "base64:" + base64.b64encode(raw).decode()


def _bytes(text: str) -> bytes:
    if text.startswith("base64:"):
        return base64.b64decode(text.removeprefix("base64:"))
    return text.encode()


def distance(mine: list[int], theirs: list[int]) -> float:
    """Return the share of labels that differ."""
    return float(np.mean(np.array(mine) != np.array(theirs)))
