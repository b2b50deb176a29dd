"""A real Prometheus, and its queries."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.harness import free_port, wait_for


@contextlib.contextmanager
def prometheus(directory: Path, config: dict[str, Any]) -> Iterator[httpx.Client]:
    """Run Prometheus with a configuration and yield a client of its API."""
    port = free_port()
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        ["prometheus", f"--config.file={directory}/prometheus.yml",
         f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_for(lambda: is_ready(client))
            yield client
    finally:
        process.terminate()
        process.wait()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").is_success
    except httpx.TransportError:
        return False


def query(client: httpx.Client, expr: str) -> list[float]:
    """Return the values of an instant query, in no order."""
    answer = client.get("/api/v1/query", params={"query": expr})
    assert answer.is_success, f"{expr}: {answer.text}"
    return [float(sample["value"][1]) for sample in answer.json()["data"]["result"]]
