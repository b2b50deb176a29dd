"""``funnel demo``: the service, a stream to turn, and a view of both in the terminal."""

import asyncio
import contextlib
import importlib.util
import math
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import uvloop
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from service.commands.demo_report import Point, plot, recoveries, tell
from service.http.routes.demo import demo_router
from service.http.server import serve
from service.service import Service
from service.settings import Settings
from service.trainer.trainer import Trainer
from streams.batch import Batch
from streams.producer import HTTPTarget, ProducerError, RetryLaterError, Target, produce
from streams.sources.catalog import IMAGE_STREAMS, Shift, Stream
from streams.sources.steering import Steered

BLOCKS = "▁▂▃▄▅▆▇█"
FRAME_SECONDS = 0.25
COLUMNS = 60
UNEVENNESS_FLOOR = 1e-9


class Demo:
    """One run of the demo.

    Args:
        stream: what is sent.
        rate: examples a second.
        settings: of the service.
        console: where the view is drawn; plain lines if it is not a terminal.
        seed: of the stream.
    """

    def __init__(
        self, stream: Stream, rate: float, settings: Settings, console: Console, seed: int = 0
    ) -> None:
        self.stream, self.rate, self.settings, self.seed = stream, rate, settings, seed
        self.console = console
        self.steered = Steered(stream, self._on_shift, seed)
        self.points: list[Point] = []
        self.shifts: list[Shift] = []
        """Those that were sent."""
        self.sent = 0
        self._service: Service | None = None
        self._stop = threading.Event()
        self._done = threading.Event()
        self._problem: BaseException | None = None

    async def run(self) -> None:
        """Serve and send until the stream is through or a signal comes.

        Streams of images can be turned by hand over HTTP, and then they have no end.

        Raises:
            ProducerError: the stream could not be sent.
        """
        self.console.print("Starting the log and the service …")
        watching: list[asyncio.Task[None]] = []
        has_hand = self.stream.name in IMAGE_STREAMS

        def started(service: Service, url: str) -> None:
            watching.append(asyncio.create_task(self._watch(service, url)))

        try:
            await serve(self.settings, started, [demo_router(self.steered)] * has_hand)
        finally:
            self._stop.set()
            await asyncio.gather(*watching, return_exceptions=True)
        if self._problem is not None:
            raise self._problem

    def _on_shift(self, shift: Shift) -> None:
        self.shifts.append(shift)
        if self._service is not None and self._service.learner is not None:
            self._service.learner.history.add_shift(*shift)

    def _send(self, url: str) -> None:
        target = HTTPTarget(url, self.settings.api_key.get_secret_value())

        def count(examples: int) -> None:
            self.sent += examples
            if self._stop.is_set():
                raise _StoppedError

        try:
            produce(
                self.steered.batches(100),
                _Stoppable(target, self._stop),
                self.rate,
                name=uuid.uuid4().hex,
                progress=count,
            )
        except _StoppedError:
            return
        except (ProducerError, OSError, RuntimeError) as error:
            self._problem = error
        finally:
            target.close()
            self._done.set()

    async def _watch(self, service: Service, url: str) -> None:
        self._service, learner = service, service.learner
        assert learner is not None
        if not self.console.is_terminal:
            self.console.print(f"Live page: {url}", highlight=False)
        sender = threading.Thread(target=self._send, args=(url,), name="demo-send", daemon=True)
        sender.start()
        live = self.console.is_terminal
        marked = 0
        with Live(console=self.console, auto_refresh=False, transient=False) as view:
            while not service.draining.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(service.draining.wait(), FRAME_SECONDS)
                point = _point(learner)
                if point and (not self.points or point.examples > self.points[-1].examples):
                    self.points.append(point)
                    if not live:
                        for shift in self.shifts[marked:]:
                            if shift.example <= point.examples:
                                self.console.print(f"  ── shift at {shift.example}: {shift.what}")
                                marked += 1
                        self.console.print(_line(point), highlight=False)
                if live:
                    view.update(self.view(url), refresh=True)
                if self._done.is_set() and service.backlog() == 0 and self._all_shown(learner):
                    break
        service.draining.set()

    def _all_shown(self, learner: Trainer) -> bool:
        if self._problem is not None:
            return True
        return bool(self.points) and self.points[-1].examples >= learner.status.examples

    @property
    def _total(self) -> int:
        """Examples that the picture is wide."""
        learned = self.points[-1].examples if self.points else 0
        return max(self.stream.examples, learned)

    def view(self, url: str) -> Panel:
        """Return the picture of the terminal."""
        table = Table.grid(padding=(0, 1))
        if not self.points:
            return Panel(Text("waiting for the first batch …"), title=f"Funnel · {url}")
        now, total = self.points[-1], self._total
        row = [" "] * COLUMNS
        for shift in self.shifts:
            if shift.example <= now.examples:
                column = min(COLUMNS - 1, shift.example * COLUMNS // total)
                for offset, letter in enumerate(f"▼{shift.what}"[: COLUMNS - column]):
                    row[column + offset] = letter
        marks = Text("".join(row), style="bold yellow")
        low, high = now.gains[1], now.gains[5]
        rows = (
            ("shift", marks, ""),
            ("accuracy", self._spark(lambda p: p.accuracy, 0.0, 1.0), f"{now.accuracy:.1%}"),
            ("scale s", self._spark(lambda p: math.log(p.scale)), f"{now.scale:.3f}"),
            (
                "gain spread",
                self._spark(lambda p: math.log(p.gains[5] / p.gains[1])),
                f"{low:.2f} … {high:.2f}",
            ),
        )
        for name, line, value in rows:
            table.add_row(Text(name, style="bold"), line, value)
        of = "" if self.steered.is_steered else f" of {total:,}"
        foot = Text(
            f"{now.examples:,}{of} examples learned at {self.rate:,.0f}/s · "
            "gain spread: from the 5 % to the 95 % quantile of p · Ctrl-C ends",
            style="dim",
        )
        return Panel(Group(table, foot), title=f"Funnel · {self.stream.name} · {url}", expand=False)

    def _spark(
        self,
        value: Callable[[Point], float],
        low: float | None = None,
        high: float | None = None,
    ) -> Text:
        cells: list[float | None] = [None] * COLUMNS
        for point in self.points:
            column = min(COLUMNS - 1, point.examples * COLUMNS // self._total)
            cells[column] = value(point)
        known = [c for c in cells if c is not None and math.isfinite(c)]
        bottom = min(known) if low is None else low
        top = max(known) if high is None else high
        line = "".join(
            " " if c is None or not math.isfinite(c) else _block(c, bottom, top) for c in cells
        )
        return Text(line, style="cyan")


class _StoppedError(Exception):
    """The demo ends."""


class _Stoppable:
    """A target that stops retrying once the demo ends."""

    def __init__(self, target: Target, stop: threading.Event) -> None:
        self._target, self._stop = target, stop

    def send(self, batch: Batch, key: str) -> None:
        """Send, or end."""
        if self._stop.is_set():
            raise _StoppedError
        try:
            self._target.send(batch, key)
        except RetryLaterError:
            if self._stop.is_set():
                raise _StoppedError from None
            raise

    def close(self) -> None:
        """Close the target."""
        self._target.close()


def _point(learner: Trainer) -> Point | None:
    statistics = learner.status.statistics
    if statistics is None or not statistics.version:
        return None
    tensor = next(iter(statistics.served.tensors.values()))
    return Point(
        statistics.examples,
        {name: learner.scores.rolling_accuracy for name, learner in statistics.learners.items()},
        tensor.scale,
        tensor.gain_quantiles,
    )


def _line(point: Point) -> str:
    return (
        f"{point.examples:>7,} examples  accuracy {point.accuracy:6.1%}  scale {point.scale:6.3f}  "
        f"gains {point.gains[1]:6.2f} … {point.gains[5]:6.2f}"
    )


def _block(value: float, low: float, high: float) -> str:
    share = (value - low) / max(high - low, UNEVENNESS_FLOOR)
    return BLOCKS[min(len(BLOCKS) - 1, max(0, int(share * len(BLOCKS))))]


def run_demo(
    stream: Stream, rate: float, settings_in: Callable[[Path], Settings], picture: Path | None
) -> int:
    """Run the demo on a log of its own that is removed afterwards.

    Args:
        stream: what is sent.
        rate: examples a second.
        settings_in: makes the settings for a data directory.
        picture: where to write the run as a picture, if anywhere.

    Raises:
        RuntimeError: there is to be a picture, and matplotlib is not installed.
    """
    if picture is not None and importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError("--plot needs matplotlib: pip install 'funnel[experiments]'")
    console = Console()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="funnel-demo-") as scratch:
        settings = settings_in(Path(scratch))
        demo = Demo(stream, rate, settings, console, settings.seed)
        uvloop.run(demo.run())
    if demo.points:
        last = demo.points[-1]
        console.print(
            f"{last.examples:,} examples learned in {time.monotonic() - began:.0f} s; "
            f"rolling accuracy {last.accuracy:.1%}"
        )
        for recovery in recoveries(demo.points, demo.shifts):
            console.print(tell(recovery), highlight=False)
    if picture is not None and demo.points:
        plot(demo.points, demo.shifts, stream.name, picture)
        console.print(f"picture: {picture}")
    return 0
