"""The demo: a service, a stream to turn, and a view of both in the terminal."""

import asyncio
import contextlib
import threading
import time
import uuid
from pathlib import Path

import uvloop
from rich.console import Console
from rich.live import Live
from rich.panel import Panel

from service.commands.comparisons.picture import check_picture
from service.commands.demonstration.report import Point, called, plot, table
from service.commands.demonstration.view import Span, line, panel
from service.http.routes.demo import demo_router
from service.http.server import serve
from service.monitoring.history import History
from service.monitoring.status import Status
from service.service import Service
from service.settings import Settings
from streams.delays.asking import ask
from streams.delays.delay import AnyDelay
from streams.environment import named_keys
from streams.producer import HTTPTarget, produce
from streams.rowstream import RowStream
from streams.sources.catalog import Stream
from streams.steering import Steered

FRAME_SECONDS = 0.25
SHOWN_SECONDS = 60
"""Part of an endless run that the panel shows."""
MAX_POINTS = 20_000
"""Newest points of an endless run that are kept, of about an hour."""
NO_IMAGES = (
    "This stream has no images, so the page has no buttons that turn it, and no pictures of inputs."
)


class Demo:
    """One run of the demo.

    Args:
        stream: the stream to send, dense or of rows.
        rate: examples a second.
        settings: settings of the service.
        console: where the view is drawn; if it is not a terminal, as plain lines.
        is_endless: whether nobody expects the stream to end.
        delay: from each example to its label; None if they come together.
    """

    history: History
    """The service's, once it has started; it measures the recoveries."""

    def __init__(
        self,
        stream: Stream | RowStream,
        rate: float,
        settings: Settings,
        console: Console,
        is_endless: bool = False,
        delay: AnyDelay | None = None,
    ) -> None:
        self.stream, self.rate, self.settings = stream, rate, settings
        self._is_endless, self._delay = is_endless, delay
        self.console = console
        self.steered = Steered(stream, lambda shift: self.history.add_shift(*shift), settings.seed)
        self.points: list[Point] = []
        self.given_accuracy: float | None = None
        """Accuracy of answers whose labels came later; None without any."""
        self._stop = threading.Event()

    async def run(self) -> None:
        """Serve and send until the stream ends or a signal comes.

        Streams of images can be turned by hand over HTTP, and then they have no end.

        Raises:
            FunnelError: the service could not be started, or the stream could not be sent.
        """
        self.console.print("Starting the log and the service …")
        watching: list[asyncio.Task[None]] = []
        has_hand = self.steered.images is not None
        if not has_hand:
            self.console.print(NO_IMAGES, highlight=False)

        def started(service: Service, url: str) -> None:
            watching.append(asyncio.create_task(self._watch(service, url)))

        try:
            await serve(self.settings, started, [demo_router(self.steered)] * has_hand)
        finally:
            ended = await asyncio.gather(*watching, return_exceptions=True)
        for problem in filter(None, ended):
            raise problem

    def _send(self, url: str) -> None:
        keys = named_keys(self.settings.api_key.get_secret_value(), "API_KEY")
        target = HTTPTarget(url, next(iter(keys.values()), ""))

        def pause(seconds: float) -> None:
            if self._stop.wait(seconds):
                raise _StoppedError

        with contextlib.closing(target), contextlib.suppress(_StoppedError):
            batches, name = self.steered.batches(100), uuid.uuid4().hex
            if self._delay is None:
                produce(batches, target, self.rate, name=name, sleep=pause)
            else:
                names = self.stream.names if isinstance(self.stream, Stream) else ()
                seed = self.settings.seed
                ask(batches, target, self._delay, seed, self.rate, name, names, sleep=pause)

    async def _watch(self, service: Service, url: str) -> None:
        try:
            model = service.model
            assert model is not None, "the service has started"
            self.history = model.history
            ends = "It goes on until Ctrl-C" if self._is_endless else "Ctrl-C ends it"
            self.console.print(f"Live page: {url}   {ends}.", highlight=False)
            sending = asyncio.create_task(asyncio.to_thread(self._send, url))
            with Live(console=self.console, auto_refresh=False, transient=False) as view:
                while not service.draining.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(service.draining.wait(), FRAME_SECONDS)
                    status = model.status
                    self._draw(_point(status), view, url)
                    self.given_accuracy = status.labels.given_accuracy
                    learned = self.points[-1].examples if self.points else -1
                    if sending.done() and sending.exception():
                        break
                    is_done = sending.done() and model.backlog().examples == 0
                    if is_done and learned >= status.examples:
                        self.history.end_stream()
                        break
            with contextlib.suppress(TimeoutError):  # a frame in which pages receive the end
                await asyncio.wait_for(service.draining.wait(), FRAME_SECONDS)
        finally:
            self._stop.set()
            service.draining.set()
        await sending

    def _draw(self, point: Point | None, view: Live, url: str) -> None:
        seen = self.points[-1].examples if self.points else -1
        if point and point.examples > seen:
            self.points.append(point)
            del self.points[:-MAX_POINTS]
            if not self.console.is_terminal:
                for shift in self.history.shifts:
                    if seen < shift.example <= point.examples:
                        self.console.print(f"  ── shift at {shift.example}: {shift.what}")
                self.console.print(line(point), highlight=False, soft_wrap=True)
        if self.console.is_terminal:
            view.update(self._panel(url), refresh=True)

    def _panel(self, url: str) -> Panel:
        learned = self.points[-1].examples if self.points else 0
        is_endless = self._is_endless or self.steered.is_steered
        if is_endless:
            width = max(1, round(SHOWN_SECONDS * self.rate))
            span, of = Span(max(0, learned - width), width), ""
        else:
            span, of = Span(0, max(self.stream.examples, learned)), f" of {self.stream.examples:,}"
        ends = "until Ctrl-C" if is_endless else "Ctrl-C ends"
        note = (
            f"{learned:,}{of} examples learned at {self.rate:,.0f}/s · "
            f"gain spread: from the 5 % to the 95 % quantile of p · {ends}"
        )
        title = f"Funnel · {self.stream.name} · {url}"
        return panel(self.points, self.history.shifts, span, title, note)


class _Console(Console):
    """A console that raises when its reader is gone; Rich would exit, and the service would not be
    stopped."""

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled."""
        raise


class _StoppedError(Exception):
    """The demo ends."""


def _point(status: Status) -> Point | None:
    statistics = status.statistics
    if statistics is None or not statistics.version:
        return None
    tensor = next(iter(statistics.served.tensors.values()))
    return Point(
        statistics.examples,
        {name: one.scores.rolling_accuracy for name, one in statistics.learners.items()},
        {name: one.scores.accuracy for name, one in statistics.learners.items()},
        tensor.scale,
        tuple(tensor.gain_quantiles.values()),
    )


def run_demo(
    stream: Stream | RowStream,
    rate: float,
    settings: Settings,
    picture: Path | None,
    is_endless: bool = False,
    delay: AnyDelay | None = None,
) -> int:
    """Run the demo; return the exit status.

    Args:
        stream: the stream to send, dense or of rows.
        rate: examples a second.
        settings: settings of the service.
        picture: where to write the run as a picture; None for no picture.
        is_endless: whether nobody expects the stream to end.
        delay: from each example to its label; None if they come together.

    Raises:
        PictureError: the picture cannot be written.
        FunnelError: the service could not be started, or the stream could not be sent.
    """
    check_picture(picture)
    console = _Console()
    began = time.monotonic()
    demo = Demo(stream, rate, settings, console, is_endless, delay)
    uvloop.run(demo.run())
    if not demo.points:
        return 0
    last, shifts = demo.points[-1], demo.history.shifts
    console.print(
        f"{last.examples:,} examples learned in {time.monotonic() - began:.0f} s; "
        f"rolling accuracy {last.accuracy:.1%}"
    )
    overall = ", ".join(f"{called(name)} {share:.2%}" for name, share in last.overall.items())
    console.print(f"Accuracy of all examples: {overall}", highlight=False)
    if demo.given_accuracy is not None:
        console.print(
            f"Accuracy of the answers when they were given: {demo.given_accuracy:.2%}",
            highlight=False,
        )
    if shifts:
        console.print(table(shifts, last.overall), highlight=False)
    if picture is not None:
        plot(demo.points, shifts, stream.name, picture)
        console.print(f"picture: {picture}")
    return 0
