"""All Prometheus metrics, from one registry."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from funnel.telemetry import QUANTILES
from service.fold.scores import ScoreSummary
from service.fold.state import SERVED
from service.monitoring.statistics import GAIN_EDGES, LearnerStatistics, Statistics, lag_seconds
from service.monitoring.status import Condition, Status

disable_created_metrics()

STEP_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
HTTP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


Series = Iterable[tuple[Sequence[str], float]]
"""The values of the labels, and the value, of each series of a family."""


@dataclass(frozen=True)
class Reading:
    """The values that a scrape reads."""

    is_ready: bool
    """True while predictions are served."""
    status: Status | None
    """None while the model starts."""
    backlog: int
    """Examples that wait to be learned."""


class Metrics:
    """The metrics of one registry: events are counted here, the rest is read at each scrape.

    Args:
        read: called at each scrape.
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"funnel_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"funnel_{name}", what, labels, registry=registry, buckets=buckets)

        ProcessCollector(registry=registry)  # start time, memory, descriptors; on Linux
        self.step_seconds = histogram("step_seconds", "Host time of one step", STEP_BUCKETS)
        self.batch_examples = histogram("batch_examples", "Examples in a batch", BATCH_BUCKETS)
        self.predict_seconds = histogram(
            "predict_seconds", "Time from a checked prediction request to its answer", HTTP_BUCKETS
        )
        what = "Time of a request, from its head to the end of its answer"
        self.http_seconds = histogram("http_request_seconds", what, HTTP_BUCKETS, "route", "code")
        self.rejected = counter("rejected", "Requests refused, by error code", "code")
        what = "Drift events that the webhook did not get"
        self.webhook_failures = counter("webhook_failures", what)
        registry.register(_ModelCollector(read))

    def observe_step(self, seconds: float, examples: int) -> None:
        """Count one step."""
        self.step_seconds.observe(seconds)
        self.batch_examples.observe(examples)


class _ModelCollector(Collector):
    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        reading = self._read()
        status = reading.status
        yield _gauge("ready", "1 if predictions are served", reading.is_ready)
        condition = status.condition if status is not None else Condition.STARTING
        conditions = [((other,), other == condition) for other in Condition]
        yield _gauges(
            "learning",
            "1 for the trainer's present condition, 0 for the others",
            ["condition"],
            conditions,
        )
        if status is not None:
            yield from _trainer(status, reading.backlog)


def _trainer(status: Status, backlog: int) -> Iterable[Metric]:
    results = [(("ok",), status.checkpoints.ok), (("failed",), status.checkpoints.failed)]
    yield _counters("checkpoints", "Checkpoints, by result", ["result"], results)
    now, newest_at = time.monotonic(), status.checkpoints.newest_at
    if status.snapshot_at is not None:
        age = now - status.snapshot_at if backlog else 0.0
        yield _gauge(
            "snapshot_age_seconds", "Age of the snapshot; 0 while nothing waits to be learned", age
        )
    if newest_at is not None and status.condition != Condition.STANDBY:
        yield _gauge("checkpoint_age_seconds", "Age of the newest checkpoint", now - newest_at)
    yield _counters(
        "drift_events",
        "Changes detected in the served model's error",
        ["detector", "direction"],
        status.drift.counts.items(),
    )
    if status.drift.last_recovery is not None:
        yield _gauge(
            "recovery_examples",
            "Examples from the last drift that the model recovered from to its recovery",
            status.drift.last_recovery,
        )
    if (statistics := status.statistics) is None:
        return
    lag = lag_seconds(statistics, time.time())
    yield _gauge("backlog_examples", "Examples that wait to be learned", backlog)
    yield _gauge("lag_seconds", "Age of the oldest entry that waits to be learned", lag)
    yield _gauge("model_version", "Batches folded into the model", statistics.version)
    yield from _learning(statistics)
    yield from _optimizer(statistics)
    yield from _experts(statistics.served)


def _learning(statistics: Statistics) -> Iterable[Metric]:
    progress = statistics.progress
    yield _counters(
        "examples",
        "Examples learned, by the way they came",
        ["source"],
        [(("http",), progress.http), (("redis",), progress.redis)],
    )
    for name, what, value in (
        ("batches", "Batches learned", statistics.version),
        (
            "nonfinite_batches",
            "Batches skipped because loss or gradient was not finite",
            statistics.nonfinite_batches,
        ),
        (
            "quarantined_batches",
            "Batches skipped because their loss was far above the recent ones",
            statistics.quarantined_batches,
        ),
        ("dead_entries", "Entries discarded because they cannot be decoded", progress.dead),
    ):
        yield _counters(name, what, [], [((), value)])
    yield from _scores({name: own.scores for name, own in statistics.learners.items()})


def _scores(learners: dict[str, ScoreSummary]) -> Iterable[Metric]:
    for name, what in (
        ("correct", "Examples predicted right before they were learned"),
        ("scored", "Examples predicted before they were learned"),
    ):
        counts = [((learner,), getattr(scores, name)) for learner, scores in learners.items()]
        yield _counters(name, what, ["learner"], counts)
    scored = {learner: scores for learner, scores in learners.items() if scores.scored}
    if SERVED not in scored:
        return
    for name, what in (
        ("accuracy", "Prequential accuracy"),
        ("loss", "Prequential cross-entropy in nats"),
    ):
        windows = [
            ((learner, window), getattr(scores, field))
            for learner, scores in scored.items()
            for window, field in (("rolling", f"rolling_{name}"), ("total", name))
        ]
        yield _gauges(name, what, ["learner", "window"], windows)
    shares = enumerate(scored[SERVED].class_recall[:MAX_CLASSES])
    recall = [((str(label),), share) for label, share in shares]
    yield _gauges("class_recall", "Rolling recall by class", ["class"], recall)


MAX_CLASSES = 100
"""Classes with a series of their own; of more, only the first."""
MAX_TENSORS = 100
"""Tensors with series of their own; of more, only the first."""


def _optimizer(statistics: Statistics) -> Iterable[Metric]:
    tensors = {
        (learner, name): tensor
        for learner, own in statistics.learners.items()
        for name, tensor in list(own.tensors.items())[:MAX_TENSORS]
    }
    labels = ["learner", "tensor"]
    for name, what in (
        ("scale", "Funnel's scale s"),
        ("step_size", "Learning rate in effect, η s"),
        ("alignment", "cos(g, ν) of the last step"),
        ("gradient_norm", "Length of the last gradient"),
        ("update_norm", "Length of the last step"),
    ):
        yield _gauges(name, what, labels, [(key, getattr(t, name)) for key, t in tensors.items()])
    gains = [
        ((*key, f"{quantile:g}"), value)
        for key, tensor in tensors.items()
        for quantile, value in zip(QUANTILES, tensor.gain_quantiles, strict=True)
    ]
    yield _gauges("gain", "Quantiles of Funnel's gains p", [*labels, "quantile"], gains)
    bounds = [
        ((*key, bound), getattr(tensor, f"gain_at_{bound}_bound"))
        for key, tensor in tensors.items()
        for bound in ("lower", "upper")
    ]
    yield _gauges(
        "gain_at_bound_ratio", "Share of the gains at a bound", [*labels, "bound"], bounds
    )
    distribution = GaugeHistogramMetricFamily(
        "funnel_gain_distribution", "Funnel's gains p", labels=labels
    )
    edges = [f"{edge:.4g}" for edge in GAIN_EDGES] + ["+Inf"]
    for key, tensor in tensors.items():
        buckets = list(zip(edges, accumulate(tensor.gain_counts), strict=True))
        distribution.add_metric(key, buckets, tensor.gain_sum)
    yield distribution


def _experts(served: LearnerStatistics) -> Iterable[Metric]:
    """Only for a pool: a family without series would suggest that there are experts."""
    for name, what, values in (
        ("expert_weight", "Weight of an expert in the pool", served.expert_weights),
        (
            "expert_age_batches",
            "Batches that an expert has learned since it began, or was renewed after a shift",
            served.expert_ages,
        ),
    ):
        if values:
            yield _gauges(
                name, what, ["expert"], [((key,), value) for key, value in values.items()]
            )


def _gauge(name: str, what: str, value: float) -> Metric:
    return _gauges(name, what, [], [((), value)])


def _gauges(name: str, what: str, labels: Sequence[str], series: Series) -> Metric:
    family = GaugeMetricFamily(f"funnel_{name}", what, labels=labels)
    for key, value in series:
        family.add_metric(key, float(value))
    return family


def _counters(name: str, what: str, labels: Sequence[str], series: Series) -> Metric:
    family = CounterMetricFamily(f"funnel_{name}", what, labels=labels)
    for key, value in series:
        family.add_metric(key, value)
    return family
