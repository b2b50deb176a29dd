"""Ask a service, and send the labels by id when their time has come."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from streams.batch import Batch
from streams.delays.delay import AnyDelay
from streams.producer import GIVE_UP_SECONDS, HTTPTarget, NothingLearnedError, insist

if TYPE_CHECKING:  # dense features need no pyarrow
    from streams.examples import AnyBatch

MOST_LABELS = 1_000
"""Labels in a request."""


@dataclass
class Told:
    """The result of asking a stream and sending its labels."""

    asked: int = 0
    """Examples that were asked."""
    taught: int = 0
    """Examples that were sent with their labels, since the service had learned nothing yet."""
    labelled: int = 0
    """Labels that were sent."""
    right: int = 0
    """Answers that equal their labels, as texts."""
    seconds: float = 0.0
    retries: int = 0

    def __str__(self) -> str:
        first = f"{self.taught} learned before the first answer, " if self.taught else ""
        right = f" {self.right / self.asked:.1%} of the answers were right." if self.asked else ""
        return (
            f"{self.asked} examples asked, {first}{self.labelled} labels came, {self.missing} did "
            f"not.{right} {self.seconds:.1f} s, {self.retries} retries"
        )

    @property
    def missing(self) -> int:
        """Questions whose labels did not come within the stream."""
        return self.asked - self.labelled


@dataclass(order=True)
class _Due:
    """A label that is to come."""

    at: float
    """Seconds, or examples of the stream."""
    index: int
    id: str = field(compare=False)
    label: object = field(compare=False)
    weight: float | None = field(compare=False)


def ask(
    batches: "Iterable[AnyBatch]",
    target: HTTPTarget,
    delay: AnyDelay,
    seed: int = 0,
    rate: float | None = None,
    name: str = "",
    names: Sequence[str] = (),
    progress: Callable[[int], object] = lambda examples: None,
    away: Callable[[str], object] = lambda reason: None,
    give_up_seconds: float = GIVE_UP_SECONDS,
    waits: bool = False,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Told:
    """Ask every example in order, and send its label when its delay has passed.

    A delay in seconds begins when the answer has come. One in examples has passed as
    `streams.delays.arrivals` says: before a batch is asked, the labels are sent that come up to its
    first example. Labels of times are sent after the last example, too; labels that would come
    after so many further examples, and labels that never come, are not sent.

    Args:
        batches: the stream; rows in one chunk each.
        target: a service.
        delay: from each example to its label.
        seed: of drawn delays.
        rate: examples a second; None for as fast as the target answers.
        name: ids are made from it, and the index of the example.
        names: of the classes of dense features by number; empty if they are numbers.
        progress: called with the number of examples of each batch that was asked.
        away, give_up_seconds: as for `streams.producer.produce`.
        waits: whether to ask no more until labels that were sent are learned.
        sleep: waits for so many seconds.
        clock: the time in seconds.

    Raises:
        ProducerError: something was refused, or the target was absent for too long.
    """
    told, waiting, began = Told(), list[_Due](), clock()
    is_timed, draws = delay.in_seconds, delay.draws(seed)

    def send_due(before: float) -> None:
        due = deque[_Due]()
        while waiting and waiting[0].at <= before:
            due.append(heapq.heappop(waiting))
        while due:
            part = [due.popleft() for _ in range(min(MOST_LABELS, len(due)))]
            _label(part)

    def _label(part: Sequence[_Due]) -> None:
        ids, labels = [one.id for one in part], [one.label for one in part]
        weights = None if part[0].weight is None else [one.weight or 0.0 for one in part]
        attempt = partial(target.label, ids, labels, weights, waits)
        told.retries += insist(attempt, ids[0], away, give_up_seconds, sleep)[1]
        told.labelled += len(part)

    def wait_until(moment: float) -> None:
        """Wait, and send the labels whose time comes meanwhile."""
        while True:
            if is_timed:
                send_due(clock())
            ends = min(moment, waiting[0].at) if is_timed and waiting else moment
            if (left := ends - clock()) > 0:
                sleep(left)
            elif ends == moment:
                return

    index = 0
    for batch in batches:
        wait_until(clock() if rate is None else began + index / rate)
        if not is_timed:
            send_due(index)
        n = len(batch)
        ids = [f"{name}-{k}" for k in range(index, index + n)]
        labels, weights = _labels_of(batch), _weights_of(batch)
        until = draws.next(_texts_of(batch, names))
        try:
            attempt = partial(target.ask, batch, ids)
            answers, tries = insist(attempt, ids[0], away, give_up_seconds, sleep)
        except NothingLearnedError:
            attempt_learning = partial(target.learn, batch, ids[0])
            told.retries += insist(attempt_learning, ids[0], away, give_up_seconds, sleep)[1]
            told.taught += n
        else:
            told.retries += tries
            told.asked += n
            told.right += sum(_same(a, b) for a, b in zip(answers, labels, strict=True))
            begun = np.full(n, clock()) if is_timed else index + np.arange(n)
            times = begun + until
            for k in np.flatnonzero(np.isfinite(times)).tolist():
                weight = None if weights is None else weights[k]
                one = _Due(float(times[k]), index + k, ids[k], labels[k], weight)
                heapq.heappush(waiting, one)
        index += n
        progress(n)
    if not is_timed:
        send_due(index)
    while is_timed and waiting:
        wait_until(waiting[0].at)
    told.seconds = clock() - began
    return told


def _labels_of(batch: "AnyBatch") -> list[object]:
    """Return labels as `HTTPTarget.label` takes them."""
    found: list[object] = (
        batch.labels.tolist() if isinstance(batch, Batch) else [*_texts_of(batch, ())]
    )
    return found


def _texts_of(batch: "AnyBatch", names: Sequence[str]) -> list[str]:
    """Return labels as texts, by which their delays are found.

    Args:
        batch: rows in one chunk.
        names: of the classes of dense features by number; empty if they are numbers.
    """
    if isinstance(batch, Batch):
        return [names[label] if names else str(label) for label in batch.labels.tolist()]
    [chunk] = batch.chunks
    assert chunk.labels is not None, "a stream has labels"
    texts: list[str] = chunk.labels.to_pylist()
    return texts


def _weights_of(batch: "AnyBatch") -> list[float] | None:
    weights = batch.weights
    if weights is None:
        return None
    found: list[float] = weights.tolist()
    return found


def _same(answer: object, label: object) -> bool:
    """Return whether an answer is a label; a label of rows is a text, and its answer a value."""
    if isinstance(label, str):
        from streams.rows.labels import label_text

        return label_text(answer) == label
    return answer == label
