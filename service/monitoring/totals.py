"""Counts of several processes, added up as if they were those of one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample

ADDED = ("counter", "histogram")
"""Types of the families whose samples are added up."""
OWN = "process_"
"""The start of the names of families that are of one process."""

Counts = Sequence[tuple[str, Mapping[str, str], float]]
"""Name, labels and value of each sample."""
Key = tuple[str, tuple[tuple[str, str], ...]]


def counts_of(registry: CollectorRegistry, names: Iterable[str]) -> Counts:
    """Return the samples of the families that a process counts itself, for another process.

    Args:
        registry: of the process.
        names: of the families.
    """
    return [
        (sample.name, sample.labels, sample.value)
        for family in registry.collect()
        if family.name in names
        for sample in family.samples
    ]


class Totals:
    """The counts of other processes, also of those that have ended."""

    def __init__(self) -> None:
        self._ended: dict[Key, float] = {}
        self._newest: dict[int, dict[Key, float]] = {}

    @property
    def processes(self) -> int:
        """Processes that have sent counts and have not ended."""
        return len(self._newest)

    def note(self, process: int, counts: Counts) -> None:
        """Take the newest counts of a process in place of its earlier ones."""
        self._newest[process] = {_key(name, labels): value for name, labels, value in counts}

    def end(self, process: int) -> None:
        """Keep the last counts of a process that has ended."""
        for key, value in self._newest.pop(process, {}).items():
            self._ended[key] = self._ended.get(key, 0.0) + value

    def all(self) -> dict[Key, float]:
        """Return the sum of all samples."""
        found = dict(self._ended)
        for counts in self._newest.values():
            for key, value in counts.items():
                found[key] = found.get(key, 0.0) + value
        return found


class Together(Collector):
    """The families of one process, with the counts of others added.

    Args:
        registry: of this process.
        totals: of the others.
    """

    def __init__(self, registry: CollectorRegistry, totals: Totals) -> None:
        self._registry, self._totals = registry, totals

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        others = self._totals.all()
        for family in self._registry.collect():
            if family.type in ADDED and not family.name.startswith(OWN):
                family.samples = list(_added(family, others))
            yield family


def _added(family: Metric, others: Mapping[Key, float]) -> Iterator[Sample]:
    left = {key: value for key, value in others.items() if key[0] in _names(family)}
    for sample in family.samples:
        more = left.pop(_key(sample.name, sample.labels), 0.0)
        yield sample._replace(value=sample.value + more)
    for (name, labels), value in left.items():
        yield Sample(name, dict(labels), value)


def _names(family: Metric) -> set[str]:
    """Return the names that the samples of a family have."""
    return {family.name + end for end in ("_total", "_bucket", "_count", "_sum")}


def _key(name: str, labels: Mapping[str, str]) -> Key:
    return name, tuple(sorted(labels.items()))
