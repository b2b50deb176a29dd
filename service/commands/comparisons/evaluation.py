"""The service's learner and its peers, test-then-train, without log and HTTP."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from service.commands.comparisons.tally import SHOWN, Tally, floor_outcomes, scores_of
from service.fold.inputs import to_inputs
from service.fold.networks import AUTO, find_device
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.standardizer import Standardizer
from service.fold.state import State
from service.fold.step import Fold
from service.settings import Settings
from streams.batch import Batch, Features, Labels
from streams.delays.arrivals import Arrivals, come_of, take_dense, take_labels
from streams.delays.delay import AnyDelay
from streams.peers.peers import Peer
from streams.prequential import (
    Curve,
    Outcomes,
    Probabilities,
    curve,
    points_of,
    prequential,
    rolling_points,
)
from streams.recovery import Points
from streams.sources.catalog import Stream

CPU = torch.device("cpu")
FLOORS_SAY = {"majority": "the most frequent label so far", "no_change": "the last known label"}


class Served:
    """The learner that the service runs: a snapshot answers, and the fold learns.

    Args:
        settings: of the service; model, optimizer and rates are theirs.
    """

    def __init__(self, settings: Settings) -> None:
        self.state = State(settings.spec, settings.hyperparameters, find_device(settings.device))
        self._fold = Fold(self.state)
        self._evaluate = Evaluator(self.state.served)

    def predict(self, features: Features) -> Labels:
        """Return a label for each row of [n, d], int64 [n]."""
        return self.answer(features)[0]

    def answer(self, features: Features) -> tuple[Labels, Probabilities]:
        """Return labels as `predict` does, and their probabilities, fp64 [n, classes]."""
        labels, found = self._evaluate(Snapshot.of(self.state), features)
        return labels.numpy(), found.double().numpy()

    def learn(self, batch: Batch) -> None:
        """Learn a batch."""
        self._fold.step(batch)


def as_inputs(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches with fp32 features, as the service scales them."""
    for batch in batches:
        yield Batch(to_inputs(batch.features, CPU).numpy(), batch.labels)


def standardized(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches as the service's model sees them: standardized by what came before, clamped."""
    standardizer: Standardizer | None = None
    keep = torch.tensor(True)
    for batch in batches:
        inputs = to_inputs(batch.features, CPU)
        if standardizer is None:
            standardizer = Standardizer(inputs.shape[1], CPU)
            standardizer.start(inputs)
        yield Batch(standardizer.standardized(inputs).numpy(), batch.labels)
        standardizer.update(inputs, keep)


@dataclass(frozen=True)
class Run:
    """One learner with one setting over some seeds of a stream."""

    learner: str
    setting: str
    tuned: int
    """Settings among which this one is the best in hindsight; 0 if it was not tuned."""
    outcomes: list[Outcomes] = field(default_factory=list)
    """Outcomes of each seed."""
    scores: list[dict[str, float]] = field(default_factory=list)
    """Other scores of each seed, by the names of `service.commands.comparisons.tally.SHOWN`."""
    rankings: list[Curve] = field(default_factory=list)
    """AUC of each seed, as `streams.prequential.rolling_auc` returns it, of two classes."""

    @property
    def is_floor(self) -> bool:
        """True if it is a floor."""
        return self.setting in FLOORS_SAY.values() and not self.tuned

    @property
    def accuracies(self) -> list[float]:
        """Prequential accuracy of each seed."""
        return [float(found.mean()) for found in self.outcomes]

    @property
    def accuracy(self) -> float:
        """Their mean."""
        return sum(self.accuracies) / len(self.outcomes)

    def score(self, name: str) -> float | None:
        """Return the mean of a score over the seeds; None if it is not known."""
        found = [own[name] for own in self.scores if name in own]
        return sum(found) / len(found) if found else None

    def add(self, tally: Tally) -> None:
        """Add what a tally has counted in a pass."""
        self.scores.append(tally.read())
        if tally.is_binary:
            self.rankings.append(tally.ranking())

    def merit(self, by: str) -> float:
        """Return how good the run is: the more, the better.

        Args:
            by: ``accuracy``, ``auc`` or ``log_loss``.
        """
        if by == "accuracy":
            return self.accuracy
        score = self.score(by)
        if score is None:
            return -math.inf
        return -score if by == "log_loss" else score

    def points(self, by: str) -> list[Points]:
        """Return the curve of each seed from which recovery is read: of the AUC if runs are
        compared by it, otherwise of the accuracy."""
        if by == "auc":
            return [points_of(own) for own in self.rankings]
        return [rolling_points(curve(own)) for own in self.outcomes]


def floor_runs() -> dict[str, Run]:
    """Return runs of the floors, by name, without outcomes."""
    return {name: Run(f"{name}, a floor", what, 0) for name, what in FLOORS_SAY.items()}


def name_of(settings: Settings) -> str:
    """Return the name of the served learner in tables."""
    return f"Funnel ({AUTO if settings.model == AUTO else settings.optimizer})"


def add_served(
    state: State,
    labels: Sequence[Labels],
    classes: int,
    own: Run,
    floors: Mapping[str, Run],
    tally: Tally,
    come: Sequence[Sequence[Labels]] | None = None,
) -> None:
    """Add what was measured of the served learner's answers and of the floors in a pass.

    Args:
        state: after the pass; the fold has scored the floors.
        labels: of its batches, int64.
        classes: number of classes.
        own: the run of the served learner; it has its outcomes.
        floors: the runs of the floors.
        tally: of what the served learner answered.
        come: the labels that come after each batch, if they come later; then the floors are scored
            by their answers to the questions, as the fold has scored them when the labels came.
    """
    own.add(tally)
    found = floor_outcomes(labels, classes, come)
    for k, (name, run) in enumerate(floors.items()):
        right, of_floor = found[name]
        run.outcomes.append(right)
        scores = scores_of(state.floors.scores, SHOWN, k) if come is None else of_floor.read()
        run.scores.append(scores)
        if classes == 2:
            run.rankings.append(of_floor.ranking())


def later_of(
    delay: AnyDelay | None,
    labels: Sequence[Labels],
    names: Sequence[str],
    batch_size: int,
    seed: int,
) -> Arrivals | None:
    """Return the order in which labels come; None if each batch is learned before the next.

    Args:
        delay: of the labels, in examples.
        labels: of each batch, int64.
        names: of the labels, by number.
        batch_size: examples that are learned at once.
        seed: of drawn delays.

    Raises:
        DelayError: the delay names a label that does not occur.
    """
    if delay is None:
        return None
    delay.check_labels(names)
    given = [names[label] for own in labels for label in own.tolist()]
    return Arrivals.of(delay.draws(seed).next(given), [*map(len, labels)], batch_size)


def evaluate(
    stream: Stream,
    settings: Settings,
    peers: Mapping[str, Peer],
    seeds: Sequence[int],
    progress: Callable[[int], object] = lambda examples: None,
    by: str = "accuracy",
    delay: AnyDelay | None = None,
) -> list[Run]:
    """Run the service's learner, the floors, and each peer at its best setting in hindsight.

    Args:
        stream: the stream to learn.
        settings: of the service; the peers take its batch size and its standardization.
        peers: all of which can run on the stream.
        seeds: of the streams.
        progress: called with the number of examples of each batch that a learner has learned.
        by: the score by which a setting is the best; see `Run.merit`.
        delay: of the labels, in examples; None if each batch is learned before the next.
    """
    own = Run(name_of(settings), "as served", 0)
    tried = {
        peer.title: [Run(peer.title, name, len(peer.settings)) for name in peer.settings]
        for peer in peers.values()
    }
    floors = floor_runs()
    for seed in seeds:
        batches = list(stream.batches(settings.batch_size, seed))
        served, tally = Served(settings), Tally(stream.classes)
        labels = [batch.labels for batch in batches]
        names = stream.names or tuple(map(str, range(stream.classes)))
        later = later_of(delay, labels, names, settings.batch_size, seed)
        come = come_of(later, batches, take_dense)
        own.outcomes.append(prequential(served, batches, progress, tally.add, come))
        known = come_of(later, labels, take_labels)
        add_served(served.state, labels, stream.classes, own, floors, tally, known)
        plain = list(as_inputs(batches))
        prepared = list(standardized(batches)) if settings.standardize else plain
        come_plain = come_of(later, plain, take_dense)
        come_prepared = come_of(later, prepared, take_dense)
        for peer in peers.values():
            given, come = (plain, come_plain) if peer.raw else (prepared, come_prepared)
            for run, make in zip(tried[peer.title], peer.settings.values(), strict=True):
                tally = Tally(stream.classes)
                learner = make(stream, seed)
                run.outcomes.append(prequential(learner, given, progress, tally.add, come))
                run.add(tally)
    return [own, *floors.values()] + [
        max(runs, key=lambda run: run.merit(by)) for runs in tried.values()
    ]
