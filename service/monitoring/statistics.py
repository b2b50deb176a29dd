"""Statistics of the learners, read about once a second."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from funnel.pool.pool import PoolTelemetry
from funnel.telemetry import QUANTILES, TensorTelemetry
from service.fold.learner import Learner
from service.fold.scoring.classification import ScoreSummary
from service.fold.scoring.floors import FLOORS, Level, below
from service.fold.scoring.measures import CalibrationPoint, Measures
from service.fold.scoring.regression import AnyNumberScores, worse_than
from service.fold.state import SERVED, State
from service.log.extent import Extent
from service.log.position import Progress
from service.monitoring.pictures import Gains, read_gains
from streams.recovery import WINDOW

GAIN_EDGES = tuple(10 ** (k / 4) for k in range(-12, 13))
"""Upper edges of the gain histogram's buckets: quarters of a decade over 1e-3…1e3."""

ORDERS = [f"{quantile:g}" for quantile in QUANTILES]
"""Names of the quantiles of gains."""


NO_CHANGE = "no_change"
RIVALS = (NO_CHANGE,)
"""Names of what a pool mixes with its experts' answers (`funnel.pool.persistence`)."""
CALIBRATED = "calibrated"
"""Name of the served learner's calibrated probabilities among the scores."""


@dataclass(frozen=True)
class TensorStatistics:
    """The telemetry of one parameter tensor (`funnel.telemetry`), on the host."""

    scale: float
    step_size: float
    """η s."""
    gain_quantiles: dict[str, float]
    """Quantiles of the gains, by their orders as text: ``0.05``."""
    gain_at_bound: dict[str, float]
    """Shares of the gains at the ``lower`` and at the ``upper`` bound."""
    alignment: float
    gradient_norm: float
    update_norm: float
    gain_counts: tuple[int, ...]
    """Coordinates by gain: in the bucket that ends at each of GAIN_EDGES, then above the last."""
    gain_sum: float


@dataclass(frozen=True)
class LearnerStatistics:
    """One learner, the served one or a shadow."""

    scores: ScoreSummary
    numbers: AnyNumberScores | None
    """Scores of predicted numbers; None for classes."""
    tensors: dict[str, TensorStatistics]
    expert_weights: dict[str, float]
    """Weights by the names of the pool's experts, and of NO_CHANGE where the last known label is
    mixed with them; empty without a pool. With families, how much of
    the answer each expert has (`funnel.families.mixture.Weights.shares`); a name begins with its
    family and a slash."""
    expert_ages: dict[str, int]
    """Batches learned since each expert began, by the same names; of families, those of the linear
    experts alone."""

    @property
    def family_weights(self) -> dict[str, float]:
        """How much of the answer each family has; empty without families."""
        found: dict[str, float] = {}
        for name, weight in self.expert_weights.items():
            family, slash, _ = name.partition("/")
            if slash:
                found[family] = found.get(family, 0.0) + weight
        return found


@dataclass(frozen=True)
class Statistics:
    """The learners at one position in the log."""

    version: int
    examples: int
    learners: dict[str, LearnerStatistics]
    """Learners by name, the served one first."""
    floors: dict[str, ScoreSummary]
    """Scores of the floors by name, on the same examples; none where numbers are predicted."""
    number_floors: dict[str, AnyNumberScores]
    """Scores of the floors of predicted numbers, by name; none for classes."""
    calibrated: ScoreSummary | None
    """Scores of the served learner's calibrated probabilities; None if it is not calibrated."""
    is_balanced: bool
    """True if examples count as their class is rare."""
    nonfinite_batches: int
    fast_batches: int | None
    """Batches that families skipped to keep up; None without families."""
    family_errors: Mapping[str, int]
    """How often each family that a user adds has raised in this process, by name."""
    quarantined_batches: int
    progress: Progress
    entries_added: int
    """Entries ever added to the log."""
    waiting_since: float | None
    """Unix time in seconds of the oldest entry that is read but not learned."""
    missing: Mapping[str, float]
    """Share of the rows without a usable value, by column; empty for dense features."""
    missing_values: Mapping[str, int]
    """Rows without a usable value, by column."""
    new_keys: Mapping[str, int] | None
    """Keys that have a row of the table, by column; None without a table."""
    key_collisions: float | None
    """Share of the visits of keys that met another key's slot; None without a table."""
    labels: tuple[str, ...]
    """Labels by class; empty if they are the numbers of the classes."""
    gains: Gains | None
    """None unless the inputs are images and a tensor has a weight for each class and pixel."""

    def at(self, extent: Extent, waiting_since_ms: int | None) -> "Statistics":
        """Return the same of an unchanged state, for a log of another extent.

        The arguments are those of `read_statistics`.
        """
        waiting = None if waiting_since_ms is None else waiting_since_ms / 1000
        return replace(self, entries_added=extent.added, waiting_since=waiting)

    @property
    def served(self) -> LearnerStatistics:
        """The learner that answers predictions."""
        return self.learners[SERVED]

    def scores(self) -> dict[str, ScoreSummary]:
        """Return the scores of all learners by name, the served one first and the floors last.

        The served one's are those of its probabilities as they come; CALIBRATED are of the answers.
        """
        answered = {} if self.calibrated is None else {CALIBRATED: self.calibrated}
        return {name: own.scores for name, own in self.learners.items()} | answered | self.floors

    def numbers(self) -> dict[str, AnyNumberScores]:
        """Return the scores of predicted numbers of all learners, and then of the floors."""
        own = {name: one.numbers for name, one in self.learners.items()}
        return {k: v for k, v in own.items() if v is not None} | self.number_floors

    def calibrations(self, window: str) -> dict[str, tuple[CalibrationPoint, ...]]:
        """Return the calibration curves of the served learner's probabilities as they come, SERVED,
        and of the answers, CALIBRATED, over a window."""
        found = {SERVED: self.served.scores.windows[window].calibration}
        if self.calibrated is not None:
            found[CALIBRATED] = self.calibrated.windows[window].calibration
        return found

    def below_floors(self) -> list[str]:
        """Return in words where the served model is below a floor over the last WINDOW examples.

        There is nothing to say before there are so many.
        """
        if self.served.numbers is not None:
            return worse_than(self.served.numbers, self.number_floors)
        newest = {name: own.windows[str(WINDOW)] for name, own in self.floors.items()}
        known = {k: _level(own) for k, own in newest.items() if own.examples >= WINDOW}
        own = _level(self.served.scores.windows[str(WINDOW)])
        return below(own, known, self.is_balanced)


def read_statistics(
    state: State, progress: Progress, extent: Extent, waiting_since_ms: int | None = None
) -> Statistics:
    """Compute the statistics on the device and copy them to the host.

    Args:
        state: not changed.
        progress: of the state.
        extent: of the log.
        waiting_since_ms: Unix time in milliseconds of the oldest entry that is read but not
            learned.
    """
    learners, families = state.roles(), state.served.families
    telemetry = {name: learner.pool.telemetry() for name, learner in learners.items()}
    return Statistics(
        version=state.version,
        examples=state.examples,
        learners={name: _learner(learner, telemetry[name]) for name, learner in learners.items()},
        floors={
            name: state.floors.scores.measure(k)
            for k, name in enumerate(FLOORS if state.number_floors is None else ())
        },
        number_floors={} if state.number_floors is None else state.number_floors.read(),
        calibrated=None if state.calibration is None else state.calibration.scores.measure(),
        is_balanced=state.hyperparameters.is_balanced,
        nonfinite_batches=int(state.served.nonfinite),
        fast_batches=None if families is None else int(families.skipped),
        family_errors={} if families is None else families.errors,
        quarantined_batches=int(state.guard.quarantined),
        progress=progress,
        entries_added=extent.added,
        waiting_since=None if waiting_since_ms is None else waiting_since_ms / 1000,
        missing=state.missing_ratios(),
        missing_values=state.missing_counts(),
        new_keys=state.new_key_counts(),
        key_collisions=state.key_collisions(),
        labels=state.schema.labels,
        gains=read_gains(telemetry[SERVED]["log_gains"], state.spec),
    )


def lag_seconds(statistics: Statistics, now: float) -> float:
    """Return the age of the oldest entry that waits at Unix time ``now``; 0 if none does."""
    if statistics.waiting_since is None:
        return 0.0
    return max(0.0, now - statistics.waiting_since)


def _level(measures: Measures) -> Level:
    return Level(measures.accuracy, measures.log_loss, measures.balanced_accuracy)


def _learner(learner: Learner, found: PoolTelemetry) -> LearnerStatistics:
    tensors = {
        name: _tensor(own, found["log_gains"][name], found["step_sizes"][name])
        for name, own in found["tensors"].items()
    }
    names = learner.expert_names
    rivals = dict(zip(RIVALS, found["rivals"].tolist(), strict=False)) if names else {}
    own = found["weights"] * (1.0 - sum(rivals.values()))
    weights = dict(zip(names, own.tolist(), strict=False)) | rivals
    ages = dict(zip(names, found["ages"].tolist(), strict=False))
    if (families := learner.families) is not None:
        shares = dict.fromkeys(families.names, 0.0) | dict(
            zip(families.names, weights.values(), strict=False)
        )
        if families.has_learned:
            mixed = families.mixture.weights.shares().tolist()
            shares = dict(zip(families.names, mixed, strict=True))
        weights = shares
        ages = dict(zip(families.names, found["ages"].tolist(), strict=False))
    numbers = None if learner.numbers is None else learner.numbers.read()
    return LearnerStatistics(learner.scores.measure(), numbers, tensors, weights, ages)


def _tensor(telemetry: TensorTelemetry, log_gain: Tensor, step_size: Tensor) -> TensorStatistics:
    gain = log_gain.flatten().exp()
    edges = torch.tensor(GAIN_EDGES, dtype=gain.dtype, device=gain.device) * (1 + 1e-6)
    counts = torch.bincount(torch.bucketize(gain, edges), minlength=len(GAIN_EDGES) + 1)
    return TensorStatistics(
        scale=float(telemetry["scale"]),
        step_size=float(step_size),
        gain_quantiles=dict(zip(ORDERS, telemetry["gain_quantiles"].tolist(), strict=True)),
        gain_at_bound={
            "lower": float(telemetry["gain_at_lower_bound"]),
            "upper": float(telemetry["gain_at_upper_bound"]),
        },
        alignment=float(telemetry["alignment"].clamp(-1.0, 1.0)),  # a rounded cosine
        gradient_norm=float(telemetry["gradient_norm"]),
        update_norm=float(telemetry["update_norm"]),
        gain_counts=tuple(counts.tolist()),
        gain_sum=float(gain.double().sum()),
    )
