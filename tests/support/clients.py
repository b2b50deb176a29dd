"""Requests to a small service: send it a batch, and ask for the digest of its state."""

import httpx

from tests.support.harness import SAFETENSORS
from tests.support.states import a_batch

SMALL = {"features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 600_000}
LOG, CUTS = "funnel:{logistic}:log", "funnel:{logistic}:cuts"


def learn(client: httpx.Client, seed: int, n: int = 20, wait: str = "?wait=applied") -> None:
    body = a_batch(seed, n).to_bytes()
    client.post(f"/learn{wait}", content=body, headers=SAFETENSORS).raise_for_status()


def digest(client: httpx.Client) -> str:
    return str(client.post("/checkpoint").json()["sha256"])
