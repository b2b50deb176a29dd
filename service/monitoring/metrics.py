"""All Prometheus metrics, from one registry."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TypeVar

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from service.fold.scoring.classification import RING, TOTAL
from service.fold.scoring.measures import CALIBRATION_BINS
from service.log.backlog import Load
from service.monitoring.statistics import GAIN_EDGES, Statistics, lag_seconds
from service.monitoring.status import Condition, LabelStatus, Status
from service.monitoring.totals import Counts, Together, Totals, counts_of
from streams.recovery import WINDOW

disable_created_metrics()

Key = TypeVar("Key", bound=tuple[str, ...])

STEP_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
HTTP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
DELAY_BUCKETS = (0.1, 1, 10, 60, 300, 900, 1_800, 3_600, 10_800, 43_200, 86_400, 604_800)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


MAX_CLASSES = 100
"""Classes with a series of their own; of more, only the first."""
MAX_CONFUSED = 10
"""Most classes of which each pair has a series of its own."""
MAX_COLUMNS = 200
"""Columns with series of their own; of more, only the first."""
MAX_TENSORS = 100
"""Tensors with series of their own; of more, only the first."""

COUNTED = (
    "funnel_predict_seconds", "funnel_fast_predictions", "funnel_http_request_seconds",
    "funnel_asked", "funnel_lost_questions", "funnel_rejected",
)  # fmt: skip
"""The families that every process counts by itself."""
COUNTERS = {
    "archive_failures": "Attempts to archive the log that failed, in this process",
    "batches": "Batches learned",
    "checkpoints": "Checkpoints, by result",
    "confused": "Examples by their class, and by the class predicted before they were learned",
    "correct": "Examples predicted right before they were learned",
    "damaged_entries": "Entries discarded because their checksum did not match, by this process",
    "dead_entries": "Entries discarded because they cannot be decoded",
    "drift_events": "Changes detected in the served model's error",
    "evicted_questions": "Questions closed before their time, as they took more than "
    "FUNNEL_JOIN_BYTES",
    "examples": "Examples learned, by the way they came",
    "damaged_questions": "Entries of questions that could not be read, by this process",
    "family_errors": "Times that a family which a user adds has raised, in this process",
    "fast_batches": "Batches that all families except linear skipped, to keep up",
    "labels": "Labels that came later, by what became of them",
    "missing_values": "Rows without a usable value, by column",
    "new_keys": "Keys that got a row of the table for the first time, by column",
    "nonfinite_batches": "Batches skipped because loss or gradient was not finite",
    "quarantined_batches": "Batches skipped because their loss was far above the recent ones",
    "scored": "Examples predicted before they were learned",
}
GAUGES = {
    "accuracy": "Prequential accuracy",
    "archive_age_seconds": "Time since the log was archived up to a checkpoint",
    "archive_bytes": "Bytes of the archive of the log",
    "alignment": "cos(g, ν) of the last step",
    "backlog_bytes": "Bytes of the log that wait to be learned",
    "backlog_examples": "Examples that wait to be learned",
    "calibration_observed": "Share of hits in the last 10,000 examples, in bins of as many each, "
    "by ascending probability",
    "calibration_predicted": "Mean probability in the same bins",
    "checkpoint_age_seconds": "Age of the newest checkpoint",
    "class_precision": "Rolling precision by class",
    "class_recall": "Rolling recall by class",
    "column_missing_ratio": "Share of the rows without a usable value, by column",
    "columns": "Columns of the schema",
    "expert_age_batches": (
        "Batches that an expert has learned since it began, or was renewed after a shift"
    ),
    "expert_weight": "Weight of an expert in the pool",
    "family_weight": "Share of the answer that a family of experts has",
    "gain": "Quantiles of Funnel's gains p",
    "gain_at_bound_ratio": "Share of the gains at a bound",
    "gradient_norm": "Length of the last gradient",
    "balanced_weights": "1 if examples count as their class is rare (FUNNEL_CLASS_WEIGHTS)",
    "given_accuracy": "Accuracy of the answers that were given to questions, by their labels",
    "key_collision_ratio": "Share of the visits of keys that met another key's slot",
    "label_coverage": "Share of the questions of the last FUNNEL_LABEL_TTL that have a label",
    "lag_seconds": "Age of the oldest entry that waits to be learned",
    "learning": "1 for the trainer's present condition, 0 for the others",
    "loss": "Prequential cross-entropy in nats",
    "model_info": "1, with the name of the model that is served",
    "model_version": "Batches folded into the model",
    "oldest_question_seconds": "Age of the oldest question that is not closed",
    "open_bytes": "Bytes of the questions that are not closed",
    "open_questions": "Questions that wait for their labels",
    "paused": "1 if an operator has paused learning",
    "ready": "1 if predictions are served",
    "recovery_examples": (
        "Examples from the last drift that the model recovered from to its recovery"
    ),
    "scale": "Funnel's scale s",
    "score": "Prequential scores of the learners and of the floors",
    "snapshot_age_seconds": "Age of the snapshot; 0 while nothing waits to be learned",
    "snapshot_lag_versions": "Cuts from the state that answers to the newest that is published, "
    "with the role predict",
    "snapshot_read_age_seconds": "Time since the place of the snapshots was last read, with the "
    "role predict",
    "step_size": "Learning rate in effect, η s",
    "update_norm": "Length of the last step",
    "workers": "Processes that take examples and answer on the port, this one included",
}
"""Help of the families that are read at a scrape, by name."""


@dataclass(frozen=True)
class Reading:
    """The values that a scrape reads."""

    model: str
    """Name of the model that is served; empty while it starts."""
    is_ready: bool
    """True while predictions are served."""
    status: Status | None
    """None while the model starts."""
    backlog: Load
    """The examples and bytes that wait to be learned."""


class Delays:
    """The times from questions to their labels, which come by the thousand; any thread may count.

    A histogram of prometheus-client takes one at a time, and took an eighth of the time in which a
    label is joined.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = np.zeros(len(DELAY_BUCKETS) + 1, np.int64)
        self._sum = 0.0

    def observe(self, seconds: Sequence[float]) -> None:
        """Count times in seconds."""
        own = np.bincount(np.searchsorted(DELAY_BUCKETS, seconds), minlength=len(self._counts))
        with self._lock:
            self._counts += own
            self._sum += sum(seconds)

    def family(self) -> Metric:
        """Return the histogram."""
        with self._lock:
            counts, total = self._counts.cumsum().tolist(), self._sum
        edges = [*(str(float(edge)) for edge in DELAY_BUCKETS), "+Inf"]
        what = "Time from a question to its label, both as they came to the log's server"
        family = HistogramMetricFamily("funnel_label_delay_seconds", what)
        family.add_metric([], [*zip(edges, counts, strict=True)], total)
        return family


class Metrics(Collector):
    """The metrics of one registry: events are counted here, the rest is read at each scrape.

    Args:
        read: called at each scrape.
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read, self.registry = read, CollectorRegistry()
        counter = partial(Counter, namespace="funnel", registry=self.registry)
        histogram = partial(Histogram, namespace="funnel", registry=self.registry)
        ProcessCollector(registry=self.registry)  # start time, memory, descriptors; on Linux
        self.step_seconds = histogram("step_seconds", "Host time of one step", buckets=STEP_BUCKETS)
        self.batch_examples = histogram(
            "batch_examples", "Examples in a batch", buckets=BATCH_BUCKETS
        )
        what = "Time from a checked prediction request to its answer"
        self.predict_seconds = histogram("predict_seconds", what, buckets=HTTP_BUCKETS)
        what = "Examples that the linear experts answered alone, as they had waited too long"
        self.fast_predictions = counter("fast_predictions", what)
        what = "Time of a request, from its head to the end of its answer"
        self.http_seconds = histogram(
            "http_request_seconds", what, ["route", "code"], buckets=HTTP_BUCKETS
        )
        self.asked = counter("asked", "Questions that were asked with ids, through this process")
        what = "Questions that the log did not confirm, with FUNNEL_TRACK=async"
        self.lost_questions = counter("lost_questions", what)
        self._delays = Delays()
        self.rejected = counter("rejected", "Requests refused, by error code", ["code"])
        what = "Drift events that the webhook did not get"
        self.webhook_failures = counter("webhook_failures", what)
        self.registry.register(self)
        self.workers = Totals()
        """The counts of the workers, which `exposed` adds."""

    def exposed(self) -> bytes:
        """Return the families in Prometheus' text format, with the counts of the workers added."""
        return generate_latest(Together(self.registry, self.workers))

    def counts(self) -> Counts:
        """Return what this process has counted of its requests."""
        return counts_of(self.registry, COUNTED)

    def observe_step(self, seconds: float, examples: int) -> None:
        """Count one step."""
        self.step_seconds.observe(seconds)
        self.batch_examples.observe(examples)

    def observe_delays(self, seconds: Sequence[float]) -> None:
        """Count the times from questions to their labels."""
        self._delays.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """Yield the families that are read at a scrape."""
        yield self._delays.family()
        reading = self._read()
        status = reading.status
        yield _single("ready", reading.is_ready)
        yield _single("workers", 1 + self.workers.processes)
        condition = status.condition if status is not None else Condition.STARTING
        yield _family("learning", ["condition"], {(c,): c == condition for c in Condition})
        if status is not None:
            yield _single("paused", status.is_paused)
            yield _single("balanced_weights", status.hyperparameters.is_balanced)
            yield _family("model_info", ["model"], {(reading.model,): 1})
            yield from _trainer(status, reading.backlog)


def _trainer(status: Status, backlog: Load) -> Iterable[Metric]:
    checkpoints, now = status.checkpoints, time.monotonic()
    results = {("ok",): checkpoints.ok, ("failed",): checkpoints.failed}
    yield _family("checkpoints", ["result"], results)
    yield _single("snapshot_age_seconds", now - status.snapshot_at if backlog.examples else 0.0)
    if status.followed is not None:
        yield _single("snapshot_lag_versions", status.followed.lag)
        yield _single("snapshot_read_age_seconds", now - status.followed.read_at)
    if checkpoints.newest_at is not None and status.condition != Condition.STANDBY:
        yield _single("checkpoint_age_seconds", now - checkpoints.newest_at)
    if status.archive is not None and status.condition != Condition.STANDBY:
        yield _single("archive_age_seconds", now - status.archive.newest_at)
        yield _single("archive_bytes", status.archive.bytes)
        yield _single("archive_failures", status.archive.failed)
    yield _family("drift_events", ["detector", "direction"], status.drift.counts)
    if status.drift.last_recovery is not None:
        yield _single("recovery_examples", status.drift.last_recovery)
    if status.statistics is not None:
        yield _single("backlog_examples", backlog.examples)
        yield _single("backlog_bytes", backlog.bytes)
        yield _single("damaged_entries", status.damaged_entries)
        yield from _labels(status.labels)
        yield from _learning(status.statistics)
        yield from _scores(status.statistics)
        yield from _columns(status.statistics)
        yield from _optimizer(status.statistics)


def _labels(labels: LabelStatus) -> Iterable[Metric]:
    yield _family("labels", ["result"], {(name,): n for name, n in labels.results.items()})
    yield _single("open_questions", labels.open_questions)
    yield _single("open_bytes", labels.open_bytes)
    yield _single("oldest_question_seconds", labels.oldest_seconds)
    yield _single("damaged_questions", labels.damaged)
    yield _single("evicted_questions", labels.evicted)
    if labels.coverage is not None:
        yield _single("label_coverage", labels.coverage)
    accuracies = {
        ("total",): labels.given_accuracy,
        ("rolling",): labels.rolling_given_accuracy,
    }
    known = {window: value for window, value in accuracies.items() if value is not None}
    if known:
        yield _family("given_accuracy", ["window"], known)


def _learning(statistics: Statistics) -> Iterable[Metric]:
    progress = statistics.progress
    yield _single("lag_seconds", lag_seconds(statistics, time.time()))
    yield _single("model_version", statistics.version)
    sources = {("http",): progress.http, ("redis",): progress.redis}
    yield _family("examples", ["source"], sources)
    yield _single("batches", statistics.version)
    yield _single("nonfinite_batches", statistics.nonfinite_batches)
    if statistics.fast_batches is not None:
        yield _single("fast_batches", statistics.fast_batches)
    if statistics.family_errors:
        errors = {(name,): n for name, n in statistics.family_errors.items()}
        yield _family("family_errors", ["family"], errors)
    yield _single("quarantined_batches", statistics.quarantined_batches)
    yield _single("dead_entries", progress.dead)


def _scores(statistics: Statistics) -> Iterable[Metric]:
    learners = {(name,): own for name, own in statistics.scores().items()}
    yield _family("correct", ["learner"], {key: own.correct for key, own in learners.items()})
    yield _family("scored", ["learner"], {key: own.scored for key, own in learners.items()})
    scores = statistics.served.scores
    if not scores.scored:
        return
    for name in ("accuracy", "loss"):
        series = {
            (*key, window): getattr(own, field)
            for key, own in learners.items()
            for window, field in (("rolling", f"rolling_{name}"), ("total", name))
            if own.scored
        }
        yield _family(name, ["learner", "window"], series)
    numbers = statistics.numbers()
    measured = {
        (*key, measure, window): value
        for key, own in learners.items()
        for window, measures in own.windows.items()
        for measure, value in measures.scores().items()
        if not numbers
    } | {
        (name, measure, window): value
        for name, summary in numbers.items()
        for window, found in summary.windows.items()
        for measure, value in found.scores().items()
    }
    yield _family("score", ["learner", "metric", "window"], measured)
    if numbers:  # there are no classes
        return
    names = statistics.labels or tuple(map(str, range(len(scores.class_recall))))
    newest = scores.windows[str(WINDOW)].precision
    for measure, shares in (("class_recall", scores.class_recall), ("class_precision", newest)):
        pairs = zip(names[:MAX_CLASSES], shares, strict=False)
        yield _family(measure, ["class"], {(name,): share for name, share in pairs})
    confusion = scores.windows[TOTAL].confusion
    if 0 < len(names) <= MAX_CONFUSED:
        pairs_of = {
            (label, predicted): count
            for label, row in zip(names, confusion, strict=False)
            for predicted, count in zip(names, row, strict=False)
        }
        yield _family("confused", ["class", "predicted"], pairs_of)
    curves = statistics.calibrations(str(RING))
    for measure, field in (("observed", "share"), ("predicted", "probability")):
        bins: dict[tuple[str, ...], float] = {}
        for name, curve in curves.items():
            known = dict(enumerate((getattr(own, field) for own in curve), 1))
            for k in range(1, CALIBRATION_BINS + 1):
                bins[name, str(k)] = known.get(k, math.nan)
        yield _family(f"calibration_{measure}", ["learner", "bin"], bins)


def _columns(statistics: Statistics) -> Iterable[Metric]:
    if not statistics.missing:  # dense features
        return
    shown = list(statistics.missing)[:MAX_COLUMNS]
    yield _single("columns", len(statistics.missing))
    missing = {(name,): statistics.missing[name] for name in shown}
    yield _family("column_missing_ratio", ["column"], missing)
    values = {(name,): statistics.missing_values[name] for name in shown}
    yield _family("missing_values", ["column"], values)
    if statistics.new_keys is not None:
        new = {(name,): statistics.new_keys[name] for name in shown}
        yield _family("new_keys", ["column"], new)
    if statistics.key_collisions is not None:
        yield _single("key_collision_ratio", statistics.key_collisions)


def _optimizer(statistics: Statistics) -> Iterable[Metric]:
    tensors = {
        (learner, name): tensor
        for learner, own in statistics.learners.items()
        for name, tensor in list(own.tensors.items())[:MAX_TENSORS]
    }
    labels = ["learner", "tensor"]
    for name in ("scale", "step_size", "alignment", "gradient_norm", "update_norm"):
        yield _family(name, labels, {key: getattr(t, name) for key, t in tensors.items()})
    gains = {(*key, q): p for key, t in tensors.items() for q, p in t.gain_quantiles.items()}
    yield _family("gain", [*labels, "quantile"], gains)
    bounds = {
        (*key, b): share for key, t in tensors.items() for b, share in t.gain_at_bound.items()
    }
    yield _family("gain_at_bound_ratio", [*labels, "bound"], bounds)
    distribution = GaugeHistogramMetricFamily(
        "funnel_gain_distribution", "Funnel's gains p", labels=labels
    )
    edges = [f"{edge:.4g}" for edge in GAIN_EDGES] + ["+Inf"]
    for key, tensor in tensors.items():
        buckets = list(zip(edges, accumulate(tensor.gain_counts), strict=True))
        distribution.add_metric(key, buckets, tensor.gain_sum)
    yield distribution
    served = statistics.served
    if served.expert_weights:  # a family without series would suggest that there are experts
        weights = {(name,): weight for name, weight in served.expert_weights.items()}
        yield _family("expert_weight", ["expert"], weights)
        ages = {(name,): age for name, age in served.expert_ages.items()}
        yield _family("expert_age_batches", ["expert"], ages)
    if families := served.family_weights:
        own = {(name,): weight for name, weight in families.items()}
        yield _family("family_weight", ["family"], own)


def _single(name: str, value: float) -> Metric:
    """Return a family of one series, without labels."""
    return _family(name, [], {(): value})


def _family(name: str, labels: Sequence[str], series: Mapping[Key, float]) -> Metric:
    """Return a family of COUNTERS or GAUGES; the keys of its series are the labels' values."""
    family: CounterMetricFamily | GaugeMetricFamily
    if name in COUNTERS:
        family = CounterMetricFamily(f"funnel_{name}", COUNTERS[name], labels=labels)
    else:
        family = GaugeMetricFamily(f"funnel_{name}", GAUGES[name], labels=labels)
    for key, value in series.items():
        family.add_metric(key, float(value))
    return family
