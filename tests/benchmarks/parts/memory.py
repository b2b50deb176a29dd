"""Resident memory over millions of examples: a part of `tests.benchmarks.service`, on Linux."""

import re
import tempfile
import time
from pathlib import Path

import httpx

from tests.benchmarks.measure import Plan, batches, encoded, flat_out, learned, progress, table
from tests.benchmarks.parts.learning import BACKLOG
from tests.support.harness import ServiceProcess, serving

CHECKPOINT_SECONDS = 2.0
"""This bounds the log server's memory: the log is trimmed up to the oldest of 3 checkpoints."""
MILLION = 1_000_000
LOOK_SECONDS = 0.1


def status(pid: int, field: str) -> float:
    """Return a field of a process's status in MB: VmRSS is the size now, VmHWM the highest."""
    text = Path(f"/proc/{pid}/status").read_text()
    [kilobytes] = re.findall(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(kilobytes) / 1000


def sample(pids: dict[str, int], client: httpx.Client, until: int) -> dict[str, list[float]]:
    """Return samples of each process's resident memory until enough examples are learned."""
    found: dict[str, list[float]] = {name: [] for name in pids}
    while learned(client) < until:
        for name, pid in pids.items():
            found[name].append(status(pid, "VmRSS"))
        time.sleep(LOOK_SECONDS)
    return found


def observe(service: ServiceProcess, millions: int) -> dict[str, tuple[list[float], float]]:
    """Return the median of each process over each million of examples, and its highest."""
    server = service.server_pid()
    assert server is not None
    pids = {"service": service.process.pid, "log server": server}
    medians: dict[str, list[float]] = {name: [] for name in pids}
    with service.client() as client, flat_out(service.url, encoded(batches(1000))):
        for k in range(1, millions + 1):
            progress(f"memory: million {k} of {millions}")
            for name, values in sample(pids, client, k * MILLION).items():
                medians[name].append(sorted(values)[len(values) // 2])
        progress("")
        return {name: (medians[name], status(pid, "VmHWM")) for name, pid in pids.items()}


def run(plan: Plan) -> str:
    """Measure one service while it learns, and return the table."""
    millions = max(2, plan.memory_examples // MILLION)
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(
            Path(scratch),
            batch_size=1000,
            max_backlog=BACKLOG,
            checkpoint_every_seconds=CHECKPOINT_SECONDS,
        ) as service,
    ):
        found = observe(service, millions)
    lines = []
    for name, (medians, highest) in found.items():
        first, *rest = medians
        lines.append(
            (
                name,
                f"{first:,.0f}",
                f"{rest[-1]:,.0f}",
                f"{min(rest):,.0f} to {max(rest):,.0f}",
                f"{100 * (rest[-1] / first - 1):+.1f} %",
                f"{highest:,.0f}",
            )
        )
    head = ("resident memory, MB", "1st million", "last", "range since", "growth", "peak")
    return table(head, lines)
