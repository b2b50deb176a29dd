"""The time that a killed service takes to return: a part of `tests.benchmarks.service`."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.trainer.checkpoint import decode
from tests.benchmarks.measure import Plan, batches, encoded, flat_out, learned, show, table
from tests.support.harness import free_port, wait_for

CHECKPOINT_SECONDS = 5.0
FED = 100_000
"""Examples learned before each kill."""


@dataclass(frozen=True)
class Restart:
    """Seconds of one restart, and the examples that it replayed."""

    imported: float
    """From the start of the process to its first answer, while Python and torch load."""
    ready: float
    """From there until it predicts, while the log starts and the newest checkpoint loads."""
    replayed: float
    """From there until it learns, while it replays every recorded cut."""
    examples: int
    """Examples replayed, approximately."""


class Program:
    """``funnel serve``, started as from a shell, with its own data directory."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.url = directory, f"http://127.0.0.1:{free_port()}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Restart:
        """Start the service, and wait until it learns."""
        checkpointed = self._checkpointed()
        command = [sys.executable, "-m", "service.cli", "serve"]
        command += ["--port", self.url.rpartition(":")[2], "--data-dir", str(self.directory)]
        command += ["--checkpoint-every-seconds", str(CHECKPOINT_SECONDS)]
        began = time.perf_counter()
        with open(self.directory.with_suffix(".log"), "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: self._health("live"))
        lives = time.perf_counter()
        wait_for(lambda: self._health("ready"))
        ready = time.perf_counter()
        wait_for(lambda: self._health("ready").get("learning") == "learning")
        learns = time.perf_counter()
        examples = learned(self.client) - checkpointed
        return Restart(lives - began, ready - lives, learns - ready, examples)

    def _health(self, what: str) -> dict[str, str]:
        """Return a healthy answer, or None."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(self.directory.with_suffix(".log").read_text())
        try:
            answer = self.client.get(f"/health/{what}")
        except httpx.TransportError:
            return {}
        return answer.json() if answer.is_success else {}

    def kill(self) -> None:
        """Kill the service and its log server with SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        server = self.directory / "log/valkey.pid"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(server.read_text()), signal.SIGKILL)
            server.unlink()

    def _checkpointed(self) -> int:
        """Return the number of examples in the newest checkpoint."""
        files = sorted(self.directory.glob("checkpoints/logistic/*.safetensors"))
        return decode(files[-1].read_bytes()).copy.examples if files else 0


def restarts(directory: Path, repeats: int) -> list[Restart]:
    """Send examples, kill the service, and start it again."""
    program, found = Program(directory), []
    bodies = encoded(batches(1000))
    program.start()
    try:
        for _ in range(repeats):
            fed = learned(program.client) + FED
            with flat_out(program.url, bodies):
                wait_for(lambda fed=fed: learned(program.client) >= fed)
            program.kill()
            found.append(program.start())
    finally:
        program.kill()
    return found


def run(plan: Plan) -> str:
    """Kill and restart several times, and return the table."""
    with tempfile.TemporaryDirectory() as scratch:
        found = restarts(Path(scratch) / "data", plan.repeats)
    rows = (
        ("process start to first answer (Python, torch)", [r.imported for r in found]),
        ("then until ready: log started, checkpoint loaded", [r.ready for r in found]),
        ("then until replayed: recorded cuts repeated", [r.replayed for r in found]),
    )
    lines = [(name, show(values, ".2f")) for name, values in rows]
    lines.append(("examples replayed", show([r.examples for r in found], ",.0f")))
    return table(("after kill -9 of service and log", "seconds"), lines)
