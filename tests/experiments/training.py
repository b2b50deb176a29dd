"""One training run of an image classifier: steps, evaluation, and exact resume."""

import csv
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, Inner, RMSprop
from streams.errors import FunnelError
from tests.experiments.images import DataError, Source
from tests.experiments.networks import mobilenet_v1, resnet50

# For each name: inner optimizer, default learning rate, default momentum.
OPTIMIZERS: dict[str, tuple[Inner, float, float]] = {
    "momentum": (SGD(), 0.1, 0.9),
    "adagrad": (Adagrad(), 0.01, 0.0),
    "adagrad-ema": (AdagradEMA(), 0.01, 0.0),
    "rmsprop": (RMSprop(), 1e-3, 0.0),
    "adam": (Adam(), 1e-3, 0.0),
}
SCHEDULES = ("constant", "cosine", "step")
REPORT_EVERY = 50
LOG_COLUMNS = ("optimizer", "schedule", "step", "train_loss", "test_accuracy", "lr", "scale")


class DivergedError(FunnelError, RuntimeError):
    """The training loss is not finite."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run; with the code they determine each of its bits on one machine."""

    network: str
    optimizer: str
    funnel: bool
    schedule: str
    steps: int
    batch_size: int
    lr: float | None = None
    momentum: float | None = None
    nesterov: bool = False
    gain_lr: float = 1e-4
    scale_lr: float = 1e-4
    weight_decay: float = 5e-4
    warmup: int = 0
    width: float = 1.0
    evaluate_every: int = 0
    compiled: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the run's row in the table."""
        inner = {"momentum": "Momentum", "adagrad-ema": "AdaGrad-EMA"}
        base = inner.get(self.optimizer, self.optimizer)
        return f"Funnel({base})" if self.funnel else base


@dataclass(frozen=True)
class Result:
    """A row of the table; accuracies in [0, 1]."""

    settings: Settings
    final_accuracy: float
    best_accuracy: float
    train_loss: float
    seconds_a_step: float
    median_scale: float


def learning_rate_factor(settings: Settings) -> Callable[[int], float]:
    """Return the schedule: a function from steps taken to a factor of the learning rate.

    ``step`` divides by ten after half and after three quarters of the steps. Every schedule starts
    with a linear warm-up over ``settings.warmup`` steps.
    """

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
        done = step / settings.steps
        if settings.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if settings.schedule == "step":
            return warm * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
        return warm

    return factor


class Run:
    """Network, optimizer and schedule of one run, and the number of steps it has taken."""

    def __init__(self, settings: Settings, source: Source, device: torch.device) -> None:
        self.settings, self.source, self.device = settings, source, device
        torch.manual_seed(settings.seed)
        if settings.network == "resnet50":
            network = resnet50(source.classes)
        else:
            network = mobilenet_v1(source.classes, settings.width, source.small_images)
        self.network = network.to(device)
        inner, lr, momentum = OPTIMIZERS[settings.optimizer]
        # With γp = γs = 0 Funnel equals the inner optimizer under heavy-ball momentum bit for bit,
        # so one code path serves the baselines too.
        self.optimizer = Funnel(
            self.network.named_parameters(),
            inner,
            lr=lr if settings.lr is None else settings.lr,
            momentum=momentum if settings.momentum is None else settings.momentum,
            nesterov=settings.nesterov,
            gain_lr=settings.gain_lr if settings.funnel else 0.0,
            scale_lr=settings.scale_lr if settings.funnel else 0.0,
            weight_decay=settings.weight_decay,
            compiled=settings.compiled,
        )
        self.schedule = LambdaLR(self.optimizer, learning_rate_factor(settings))
        self.step = 0
        self.best = 0.0

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically, without RNG state: seed and step determine the batches."""
        partial = path.with_name(f"{path.name}.part")
        torch.save(
            {
                "settings": asdict(self.settings),
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "step": self.step,
                "best": self.best,
            },
            partial,
        )
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint, exactly where it was written.

        Raises:
            DataError: the checkpoint is of a run with other settings.
        """
        saved = torch.load(path, map_location=self.device, weights_only=True)
        mine = asdict(self.settings)
        other = [f"{k} {v!r}" for k, v in saved["settings"].items() if mine[k] != v]
        if other:
            raise DataError(f"{path} is of a run with {', '.join(other)}; delete it or match it")
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.step, self.best = saved["step"], saved["best"]

    def train(
        self,
        checkpoint: Path | None = None,
        log: Path | None = None,
        stop_after: int | None = None,
    ) -> Result:
        """Train to the end, or for ``stop_after`` steps, and evaluate.

        Raises:
            DivergedError: the loss is NaN or inf.
            KeyboardInterrupt: Ctrl-C was pressed; the checkpoint, if any, has been written.
        """
        settings = self.settings
        last = settings.steps if stop_after is None else min(settings.steps, self.step + stop_after)
        batches = self.source.train(settings.batch_size, self.step, settings.seed)
        losses: list[Tensor] = []
        loss = math.nan
        seconds: list[float] = []
        with (
            deferred_interrupt() as interrupted,
            tqdm(total=settings.steps, initial=self.step, desc=settings.name) as bar,
        ):
            started = time.perf_counter()
            while self.step < last and not interrupted.is_set():
                losses.append(self._train_step(batches))
                bar.update()
                due = settings.evaluate_every and self.step % settings.evaluate_every == 0
                if len(losses) == REPORT_EVERY or due or self.step == last:
                    loss = float(torch.stack(losses).mean())  # waits for the device
                    seconds.append((time.perf_counter() - started) / len(losses))
                    losses.clear()
                    if not math.isfinite(loss):
                        raise DivergedError(
                            f"{settings.name}: the loss is {loss} at step {self.step}; "
                            "try a smaller --lr"
                        )
                    bar.set_postfix(loss=f"{loss:.3f}", scale=f"{self.median_scale():.3g}")
                    if due and self.step < last:
                        self._evaluate_and_log(loss, log)
                        if checkpoint:
                            self.save(checkpoint)
                    started = time.perf_counter()
        if interrupted.is_set():
            if checkpoint:
                self.save(checkpoint)
            raise KeyboardInterrupt
        accuracy = self._evaluate_and_log(loss, log)
        if checkpoint:
            self.save(checkpoint)
        median = statistics.median(seconds) if seconds else math.nan
        return Result(settings, accuracy, self.best, loss, median, self.median_scale())

    def _train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        images, labels = next(batches)
        self.network.train()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.network(images), labels)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the accuracy on the test set."""
        self.network.eval()
        correct = total = 0
        for images, labels in self.source.test(max(self.settings.batch_size, 250)):
            correct += int((self.network(images).argmax(1) == labels).sum())
            total += len(labels)
        return correct / total

    def median_scale(self) -> float:
        """Return the median of the step-size scale s over the tensors."""
        states = self.optimizer.state.values()
        return float(torch.stack([s["log_scale"] for s in states]).median().exp())

    def _evaluate_and_log(self, loss: float, log: Path | None) -> float:
        accuracy = self.evaluate()
        self.best = max(self.best, accuracy)
        if log:
            new = not log.exists()
            with log.open("a", newline="") as opened:
                writer = csv.writer(opened)
                if new:
                    writer.writerow(LOG_COLUMNS)
                lr = self.optimizer.param_groups[0]["lr"]
                row = (self.settings.name, self.settings.schedule, self.step, loss, accuracy)
                writer.writerow((*row, lr, self.median_scale()))
        return accuracy


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event, so that it cannot interrupt a step."""
    event = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
