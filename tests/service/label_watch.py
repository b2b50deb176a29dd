"""Read what a service records of questions and labels, and fold it in plain code."""

import threading
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from redis.exceptions import RedisError

from service.fold.state import State
from service.fold.step import Fold
from service.log.cuts import Cut
from service.log.entries import Fields
from service.log.keys import Keys
from service.log.labels import Join, Place, Result, read_labels
from service.log.position import EntryId, Progress
from service.log.questions import Questions, read_questions
from service.settings import Settings
from service.trainer.checkpoint import Checkpoint
from streams.batch import Batch
from tests.support.harness import RedisProcess
from tests.support.states import CPU

POLL_SECONDS = 0.05
"""Far less than an entry lies in the log, which keeps what the oldest checkpoint needs."""


class UnjoinedError(AssertionError):
    """The cuts do not record what they should."""


@dataclass
class Watch:
    """All entries that were ever in the streams of a model."""

    redis: RedisProcess
    settings: Settings
    entries: dict[str, dict[EntryId, Fields]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.look()
        while not self._stopped.wait(POLL_SECONDS):
            self.look()

    def look(self) -> None:
        """Read what has come; a server that is down is asked again later."""
        keys = Keys(self.settings.model)
        for name in (keys.asked, keys.log, keys.cuts):
            own = self.entries.setdefault(name, {})
            last = str(max(own)) if own else "0-0"
            try:
                with self.redis.client() as client:
                    found = client.xrange(name, f"({last}", "+")
            except RedisError:
                continue
            own |= {EntryId.parse(entry.decode()): fields for entry, fields in found}

    def stop(self) -> None:
        """Stop looking."""
        self._stopped.set()
        self._thread.join()

    def _of(self, name: str) -> list[tuple[EntryId, Fields]]:
        return sorted(self.entries[name].items())

    @property
    def cuts(self) -> list[Cut]:
        """The recorded cuts.

        Raises:
            UnjoinedError: one was not seen.
        """
        found = self._of(Keys(self.settings.model).cuts)
        if [entry.milliseconds for entry, _ in found] != list(range(1, len(found) + 1)):
            seen = [entry.milliseconds for entry, _ in found]
            raise UnjoinedError(f"some cuts are missing among {seen}")
        return [Cut.from_json(entry.milliseconds, fields[b"cut"]) for entry, fields in found]

    @property
    def questions(self) -> dict[EntryId, Questions]:
        """The questions by entry."""
        found = self._of(Keys(self.settings.model).asked)
        return {entry: read_questions(fields, self.settings.spec.shape) for entry, fields in found}

    def results(self, cuts: list[Cut]) -> list[tuple[bytes, float, str, int]]:
        """Return the hash, the label, the result and the entry's time of each label, in order."""
        labels = dict(self._of(Keys(self.settings.model).log))
        decided: dict[EntryId, list[Join]] = {}
        for cut in cuts:
            for entry, joins in cut.joins.items():
                decided.setdefault(entry, []).extend(joins)
        found = []
        for entry, joins in decided.items():
            own = read_labels(labels[entry][b"labels"], self.settings.spec.classes)
            for text, label, join in zip(own.hashes, own.labels, joins, strict=True):
                found.append((text, float(label), str(join.result), entry.milliseconds))
        return found

    def are_decided(self, cuts: list[Cut]) -> bool:
        """Return whether cuts hold the result of each label in the log."""
        decided = Counter[EntryId]()
        for cut in cuts:
            decided.update({entry: len(joins) for entry, joins in cut.joins.items()})
        return all(
            len(read_labels(fields[b"labels"], self.settings.spec.classes)) == decided[entry]
            for entry, fields in self._of(Keys(self.settings.model).log)
            if b"labels" in fields
        )

    def folded(self) -> str:
        """Return the digest of a plain fold of what the cuts record."""
        state = State(self.settings.spec, self.settings.hyperparameters, CPU)
        fold, questions = Fold(state), self.questions
        for cut in self.cuts:
            joins = [join for own in (*cut.joins.values(), cut.met) for join in own]
            learned = [join for join in joins if join.place is not None]
            if learned:
                report = fold.step(self._batch(learned, questions))
                state.drift.note(report, len(learned), state.examples, cut.position)
        return Checkpoint.of(state, Progress()).sha256()

    def _batch(self, joins: list[Join], questions: dict[EntryId, Questions]) -> Batch:
        """Return the examples of labels; one that corrects another is class 1."""
        features, weights, labels = [], [], []
        for join in joins:
            assert join.place is not None
            features.append(np.asarray(questions[join.place.entry].part(join.place.row)))
            labels.append(1 if join.result == Result.CORRECTED else join.label)
            weights.append(join.weight * join.factor)
        kind = np.float32 if self.settings.spec.classes == 0 else np.int64
        own = None if set(weights) == {1.0} else np.array(weights, np.float32)
        return Batch(np.concatenate(features), np.array(labels, kind), own)

    def check_sums(self, ttl_ms: int) -> None:
        """Check that each question is learned once, with the sum of its labels that were added.

        Raises:
            UnjoinedError: one is not.
        """
        cuts, questions = self.cuts, self.questions
        at = {own.hash_of(r): e for e, own in questions.items() for r in range(len(own.labels))}
        sums: dict[bytes, float] = {}
        for own, label, result, when in self.results(cuts):
            if result in (Result.ADDED, Result.WAITING):
                sums[own] = sums.get(own, 0.0) + label
            elif result != Result.LATE or when - at[own].milliseconds < ttl_ms:
                raise UnjoinedError(f"a label is {result} {when - at[own].milliseconds} ms later")
        met = [join for cut in cuts for join in cut.met]
        learned = {_hash(join.place, questions): join.label for join in met}
        if len(met) != len(learned) or learned != sums:
            raise UnjoinedError(f"{len(met)} sums are learned of {len(sums)}, or other ones")

    def check_weights(self) -> None:
        """Check that each question is once a negative, and once a positive if that came.

        Raises:
            UnjoinedError: one is not.
        """
        cuts, questions = self.cuts, self.questions
        positive = {own for own, label, *_ in self.results(cuts) if label == 1}
        asked = [own.hash_of(r) for own in questions.values() for r in range(len(own.labels))]
        found: dict[str, Counter[bytes]] = {}
        for cut in cuts:
            for join in (join for own in (*cut.joins.values(), cut.met) for join in own):
                if join.place is None:
                    continue
                found.setdefault(join.result, Counter())[_hash(join.place, questions)] += 1
                p = float(questions[join.place.entry].answers[join.place.row][0])
                right = p * (2 - p) if join.result == Result.ASSUMED else 2 - p
                if abs(join.weight * join.factor - right) > 1e-6:
                    raise UnjoinedError(f"{join} has another weight than {right}")
        expected = {"assumed": Counter(set(asked)), "corrected": Counter(positive)}
        if found != expected:
            raise UnjoinedError("negatives or positives are missing, or learned twice")


def _hash(place: Place | None, questions: dict[EntryId, Questions]) -> bytes:
    assert place is not None
    return questions[place.entry].hash_of(place.row)
