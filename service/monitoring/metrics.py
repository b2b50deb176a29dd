"""All Prometheus metrics, from one registry."""

import time
from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

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
from service.monitoring.statistics import GAIN_EDGES, Statistics, lag_seconds
from service.monitoring.status import Condition, Drift

if TYPE_CHECKING:
    from service.service import Service

disable_created_metrics()

STEP_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
HTTP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Metrics:
    """What happens is counted here; what is, the collector reads from the service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        ProcessCollector(registry=r)  # process_start_time_seconds, memory, descriptors; on Linux
        self.step_seconds = Histogram(
            "funnel_step_seconds", "Host time of one step", registry=r, buckets=STEP_BUCKETS
        )
        self.batch_examples = Histogram(
            "funnel_batch_examples", "Examples in a batch", registry=r, buckets=BATCH_BUCKETS
        )
        self.predict_seconds = Histogram(
            "funnel_predict_seconds",
            "Time from a checked prediction request to its answer",
            registry=r,
            buckets=HTTP_BUCKETS,
        )
        self.http_seconds = Histogram(
            "funnel_http_request_seconds",
            "Time of a request, its body included",
            ["route", "code"],
            registry=r,
            buckets=HTTP_BUCKETS,
        )
        self.rejected = Counter(
            "funnel_rejected", "Requests refused, by error code", ["code"], registry=r
        )
        self.webhook_failures = Counter(
            "funnel_webhook_failures", "Drift events that the webhook was not told", registry=r
        )

    def observe_step(self, seconds: float, examples: int) -> None:
        """Count one step."""
        self.step_seconds.observe(seconds)
        self.batch_examples.observe(examples)

    def watch(self, service: "Service") -> None:
        """Collect from the service at each scrape."""
        self.registry.register(_ServiceCollector(service))


class _ServiceCollector(Collector):
    def __init__(self, service: "Service") -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        service = self._service
        learner = service.learner
        yield _gauge("ready", "1 if predictions are served", float(service.is_ready))
        learning = GaugeMetricFamily(
            "funnel_learning", "1 at what the learner is doing", labels=["condition"]
        )
        now_doing = learner.status.condition if learner is not None else "starting"
        for condition in Condition:
            learning.add_metric([condition], float(condition == now_doing))
        yield learning
        if learner is None:
            return
        checkpoints = CounterMetricFamily(
            "funnel_checkpoints", "Checkpoints, by result", labels=["result"]
        )
        for result, count in {
            "ok": learner.status.checkpoints.ok,
            "failed": learner.status.checkpoints.failed,
        }.items():
            checkpoints.add_metric([result], count)
        yield checkpoints
        now = time.monotonic()
        if learner.status.snapshot_at is not None:
            age = now - learner.status.snapshot_at if service.backlog() else 0.0
            yield _gauge("snapshot_age_seconds", "How far the snapshot lags behind", age)
        if (
            learner.status.checkpoints.newest_at is not None
            and learner.status.condition != "standby"
        ):
            yield _gauge(
                "checkpoint_age_seconds",
                "Of the newest checkpoint",
                now - learner.status.checkpoints.newest_at,
            )
        yield from _drift(learner.status.drift)
        statistics = learner.status.statistics
        if statistics is None:
            return
        yield _gauge("backlog_examples", "Examples that wait to be learned", service.backlog())
        yield _gauge("lag_seconds", "Age of the oldest entry that waits", lag_seconds(statistics))
        yield _gauge("model_version", "Batches folded into the model", statistics.version)
        yield from _learning(statistics)
        yield from _optimizer(statistics)
        yield from _experts(statistics)


def _drift(monitor: Drift) -> Iterable[Metric]:
    events = CounterMetricFamily(
        "funnel_drift_events",
        "Changes detected in the served model's error",
        labels=["detector", "direction"],
    )
    for labels, count in monitor.counts.items():
        events.add_metric(labels, count)
    yield events
    if monitor.last_recovery is not None:
        yield _gauge(
            "recovery_examples",
            "Examples from the last drift that was recovered from until it was",
            monitor.last_recovery,
        )


def _learning(statistics: Statistics) -> Iterable[Metric]:
    progress = statistics.progress
    examples = CounterMetricFamily(
        "funnel_examples", "Examples learned, by where they came from", labels=["source"]
    )
    examples.add_metric(["http"], progress.http)
    examples.add_metric(["redis"], progress.redis)
    yield examples
    yield CounterMetricFamily("funnel_batches", "Batches learned", value=statistics.version)
    yield CounterMetricFamily(
        "funnel_nonfinite_batches",
        "Batches left out because loss or gradient was not finite",
        value=statistics.nonfinite_batches,
    )
    yield CounterMetricFamily(
        "funnel_quarantined_batches",
        "Batches left out because their loss was far above the recent ones",
        value=statistics.quarantined_batches,
    )
    yield CounterMetricFamily(
        "funnel_dead_entries",
        "Entries put aside because they cannot be learned",
        value=progress.dead,
    )
    yield from _scores({name: t.scores for name, t in statistics.learners.items()})


def _scores(learners: dict[str, ScoreSummary]) -> Iterable[Metric]:
    for name, what in (
        ("correct", "Examples predicted right before they were learned"),
        ("scored", "Examples predicted before they were learned"),
    ):
        counter = CounterMetricFamily(f"funnel_{name}", what, labels=["learner"])
        for learner, scores in learners.items():
            counter.add_metric([learner], getattr(scores, name))
        yield counter
    scored = {learner: scores for learner, scores in learners.items() if scores.scored}
    if SERVED not in scored:
        return
    for name, what in (
        ("accuracy", "Prequential accuracy"),
        ("loss", "Prequential cross-entropy in nats"),
    ):
        family = GaugeMetricFamily(f"funnel_{name}", what, labels=["learner", "window"])
        for learner, scores in scored.items():
            family.add_metric([learner, "rolling"], getattr(scores, f"rolling_{name}"))
            family.add_metric([learner, "total"], getattr(scores, name))
        yield family
    recall = GaugeMetricFamily("funnel_class_recall", "Rolling recall by class", labels=["class"])
    for label, share in enumerate(scored[SERVED].class_recall[:MAX_CLASSES]):
        recall.add_metric([str(label)], share)
    yield recall


MAX_CLASSES = 100
"""Classes with a series of their own; of more, only the first."""
MAX_TENSORS = 100
"""Tensors with series of their own; of more, only the first."""


def _optimizer(statistics: Statistics) -> Iterable[Metric]:
    def family(name: str, what: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"funnel_{name}", what, labels=["learner", "tensor", *labels])

    scale = family("scale", "Funnel's scale s")
    step_size = family("step_size", "Learning rate in effect, η s")
    gain = family("gain", "Quantiles of Funnel's gains p", "quantile")
    bound = family("gain_at_bound_ratio", "Share of the gains at a bound", "bound")
    alignment = family("alignment", "cos(g, ν) of the last step")
    gradient = family("gradient_norm", "Length of the last gradient")
    update = family("update_norm", "Length of the last step")
    distribution = GaugeHistogramMetricFamily(
        "funnel_gain_distribution", "Funnel's gains p", labels=["learner", "tensor"]
    )
    series = [
        ([learner, name], tensor)
        for learner, own in statistics.learners.items()
        for name, tensor in list(own.tensors.items())[:MAX_TENSORS]
    ]
    for labels, tensor in series:
        scale.add_metric(labels, tensor.scale)
        step_size.add_metric(labels, tensor.step_size)
        for quantile, value in zip(QUANTILES, tensor.gain_quantiles, strict=True):
            gain.add_metric([*labels, f"{quantile:g}"], value)
        bound.add_metric([*labels, "lower"], tensor.gain_at_lower_bound)
        bound.add_metric([*labels, "upper"], tensor.gain_at_upper_bound)
        alignment.add_metric(labels, tensor.alignment)
        gradient.add_metric(labels, tensor.gradient_norm)
        update.add_metric(labels, tensor.update_norm)
        edges = [f"{edge:.4g}" for edge in GAIN_EDGES] + ["+Inf"]
        buckets = list(zip(edges, accumulate(tensor.gain_counts), strict=True))
        distribution.add_metric(labels, buckets, tensor.gain_sum)
    yield from (scale, step_size, gain, bound, alignment, gradient, update, distribution)


def _experts(statistics: Statistics) -> Iterable[Metric]:
    """Only of a pool: a family without series would say that there are experts."""
    served = statistics.served
    for name, what, values in (
        ("funnel_expert_weight", "Weight of an expert in the pool", served.expert_weights),
        (
            "funnel_expert_age_batches",
            "Batches that an expert has learned since it began, or began anew after a shift",
            served.expert_ages,
        ),
    ):
        if values:
            family = GaugeMetricFamily(name, what, labels=["expert"])
            for expert, value in values.items():
                family.add_metric([expert], value)
            yield family


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"funnel_{name}", what, value=value)
