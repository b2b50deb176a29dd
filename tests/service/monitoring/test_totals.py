"""Counts of several processes are added up, and never fall."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.monitoring.totals import Counts, Together, Totals, counts_of
from tests.support.metrics import samples


def a_process(asked: int, routes: dict[str, int]) -> CollectorRegistry:
    """Return the registry of a process that has counted some requests."""
    registry = CollectorRegistry()
    Counter("asked", "Questions", registry=registry).inc(asked)
    times = Histogram("seconds", "Times", ["route"], buckets=(1, 2), registry=registry)
    for route, count in routes.items():
        for _ in range(count):
            times.labels(route).observe(1.5)
    Gauge("version", "Of this process", registry=registry).set(7)
    Counter("process_cpu_seconds", "Of this process", registry=registry).inc(3)
    return registry


def counts(registry: CollectorRegistry) -> Counts:
    return counts_of(registry, ("asked", "seconds", "version", "process_cpu_seconds"))


def value(together: Together, name: str, **labels: str) -> float:
    return samples(generate_latest(together).decode())[name, frozenset(labels.items())]


def test_counters_and_histograms_are_sums_and_the_rest_is_of_one_process() -> None:
    totals = Totals()
    together = Together(a_process(1, {"/learn": 2}), totals)
    totals.note(1, counts(a_process(10, {"/learn": 3, "/predict": 4})))
    totals.note(2, counts(a_process(100, {})))
    assert totals.processes == 2
    assert value(together, "asked_total") == 111
    assert value(together, "seconds_count", route="/learn") == 5
    assert value(together, "seconds_bucket", route="/learn", le="1.0") == 0
    assert value(together, "seconds_bucket", route="/learn", le="2.0") == 5
    assert value(together, "seconds_sum", route="/predict") == 6, "here alone it is a new series"
    assert value(together, "version") == 7
    assert value(together, "process_cpu_seconds_total") == 3


def test_what_an_ended_process_has_counted_still_counts() -> None:
    totals = Totals()
    together = Together(a_process(1, {}), totals)
    totals.note(1, counts(a_process(10, {"/learn": 3})))
    totals.note(1, counts(a_process(12, {"/learn": 4})))
    totals.end(1)
    totals.end(1)
    assert totals.processes == 0
    assert value(together, "asked_total") == 13
    totals.note(1, counts(a_process(5, {"/learn": 1})))
    assert value(together, "asked_total") == 18, "it began again from 0"
    assert value(together, "seconds_count", route="/learn") == 5
