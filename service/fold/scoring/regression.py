"""Prequential scores of predicted numbers: a value with a standard deviation, or quantiles.

Every prediction is scored before its target is learned, of all examples and of the last 1,000 and
10,000. With errors e = prediction - target of n examples:

- MAE: Σ |e| / n, and RMSE: (Σ e² / n)^½, in the unit of the target.
- R²: 1 - Σ e² / Σ (y - m)², where m is the mean of the targets of the batches before: what is won
  over the floor ``mean``. The first batch has no such mean and does not count.
- coverage: the share of targets within 1.645 standard deviations of the prediction. It is 0.9 if
  errors are normal and their deviation is right.
- log score: mean of -log N(y; prediction, std²), in nats (T. Gneiting, A. E. Raftery, 'Strictly
  proper scoring rules, prediction, and estimation', 2007).
- pinball loss of the quantile q: mean of max(q (y - p), (q - 1) (y - p)) (R. Koenker, G. Bassett,
  'Regression quantiles', 1978). Its coverage is the share of targets that are at most p.

All sums are on the device, and nothing is read back in a step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import NormalDist
from types import ModuleType
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from service.fold.scoring.classification import RING, TOTAL, WINDOWS, arrays_of, loops_for
from streams.recovery import WINDOW

NORMAL_90 = 1.645
"""Standard deviations around the mean that hold 90 % of a normal distribution."""
MOST = torch.finfo(torch.float32).max
Sums = npt.NDArray[np.float64]
Measured = TypeVar("Measured")


@dataclass(frozen=True)
class RegressionMeasures:
    """Scores of some examples; NaN where they are not defined."""

    examples: int
    loss: float
    """Mean of the losses that the learner gave."""
    mae: float
    rmse: float
    r2: float
    coverage: float
    log_score: float

    def scores(self) -> dict[str, float]:
        """Return the scores that are defined, by the names that metrics show."""
        names = ("mae", "rmse", "r2", "coverage", "log_score")
        return _defined({name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class QuantileMeasures:
    """Scores of some examples; NaN where they are not defined."""

    examples: int
    loss: float
    """Mean of the losses that the learner gave."""
    pinball: tuple[float, ...]
    """By quantile."""
    coverage: tuple[float, ...]
    """By quantile."""
    width: float
    """Mean distance of the outermost quantiles."""
    inside: float
    """Share of the targets between them, with both ends."""

    def scores(self) -> dict[str, float]:
        """Return the scores that are defined, by the names that metrics show: the mean pinball
        loss, the share of targets between the outermost quantiles, and their distance."""
        pinball = sum(self.pinball) / len(self.pinball)
        return _defined({"pinball": pinball, "coverage": self.inside, "width": self.width})


@dataclass(frozen=True)
class NumberSummary(Generic[Measured]):
    """Scores on the host."""

    scored: int
    windows: Mapping[str, Measured] = field(default_factory=dict)
    """By window: ``total``, and the last ``1000`` and ``10000`` examples."""


AnyNumberScores = NumberSummary[RegressionMeasures] | NumberSummary[QuantileMeasures]
"""Scores of a model of numbers on the host."""


def _defined(found: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if not math.isnan(value)}


class Rolling:
    """Sums of some numbers of each example, and a ring of the last RING.

    Args:
        fields: how many numbers an example has.
        device: where they will be.
    """

    def __init__(self, fields: int, device: torch.device) -> None:
        self.scored = torch.zeros((), dtype=torch.int64, device=device)
        self.sums = torch.zeros(fields, dtype=torch.float64, device=device)
        self.ring = torch.zeros(RING, fields, device=device)
        """Numbers at example index modulo RING."""
        self._slots = torch.arange(RING, device=device)
        self.arrays = arrays_of(self.ring, self.scored)
        """The ring and the number of examples as arrays, for compiled loops on a CPU."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"scored": self.scored, "sums": self.sums, "ring": self.ring}

    def add(self, rows: Tensor, keep: Tensor) -> None:
        """Add examples, in order.

        Args:
            rows: [n, fields]; of any values where ``keep`` is False.
            keep: bool, 0-dim; where it is False nothing changes.
        """
        rows = rows.clamp(-MOST, MOST).float()
        self.sums.add_(torch.where(keep, rows, 0.0).sum(dim=0, dtype=torch.float64))
        n = len(rows)
        new = min(n, RING)
        at = (self.scored + (n - new) + self._slots[:new]).remainder_(RING)
        kept = rows[n - new :].where(keep, self.ring.index_select(0, at))
        self.ring.index_copy_(0, at, kept)
        self.scored.add_(keep, alpha=n)

    def read(self) -> dict[str, tuple[int, Sums]]:
        """Return counts and sums of the examples, fp64 [fields], by window."""
        scored = int(self.scored)
        found: dict[str, tuple[int, Sums]] = {TOTAL: (scored, self.sums.cpu().numpy().copy())}
        ring = self.ring.cpu().numpy()
        for window in WINDOWS:
            at = np.arange(max(0, scored - window), scored) % RING
            found[str(window)] = len(at), ring[at].sum(axis=0, dtype=np.float64)
        return found


class RegressionScores:
    """Scores of a learner that predicts a value, and how sure it is.

    Args:
        device: where predictions will be.
    """

    def __init__(self, device: torch.device) -> None:
        self._rolling = Rolling(8, device)
        self.target_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._arrays = self._rolling.arrays + arrays_of(self.target_sum)
        self._room: Room | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return self._rolling.tensors() | {"target_sum": self.target_sum}

    def update(
        self, predictions: Tensor, std: Tensor | None, targets: Tensor, losses: Tensor, keep: Tensor
    ) -> None:
        """Add the outcomes of a batch, in order.

        Args:
            predictions: [n], in the unit of the target.
            std: standard deviation of each error as the learner expects it, [n]; None or NaN where
                it is not known.
            targets: [n].
            losses: of each example, [n].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        if std is not None and (compiled := loops_for(targets)) is not None:
            outcomes = predictions.double(), std.double(), targets.double(), losses.double()
            self._update_compiled(compiled, *outcomes, bool(keep))
            return
        errors, targets = (predictions.double() - targets.double()), targets.double()
        scored = self._rolling.scored
        mean = self.target_sum / scored.clamp(min=1)
        squares, has_mean = errors.square(), (scored > 0).double()
        known = torch.zeros_like(errors)
        covered, log_scores = known, known
        if std is not None:
            deviation = std.double()
            known = torch.isfinite(deviation).double()
            safe = deviation.nan_to_num(1.0).clamp(min=torch.finfo(torch.float32).tiny)
            covered = known * (errors.abs() <= NORMAL_90 * safe)
            log_scores = known * (
                0.5 * math.log(2.0 * math.pi) + safe.log() + 0.5 * (errors / safe).square()
            )
        rows = [
            losses.double(), errors.abs(), squares, has_mean * squares,
            has_mean * (targets - mean).square(), known, covered, log_scores,
        ]  # fmt: skip
        self.target_sum.add_(torch.where(keep, targets, 0.0).sum())
        self._rolling.add(torch.stack(rows, dim=1), keep)

    def _update_compiled(
        self, compiled: ModuleType, values: Tensor, std: Tensor, targets: Tensor, losses: Tensor,
        keep: bool,
    ) -> None:  # fmt: skip
        """Do the same by compiled loops, bit for bit; all numbers are fp64."""
        room = self._room
        if room is None or len(room.safe) != len(targets):
            room = self._room = Room(len(targets))
        deviations, wanted = std.numpy(), targets.numpy()
        compiled.expect(deviations, room.safe_array)
        torch.log(room.safe, out=room.logs)
        batch = (values.numpy(), deviations, room.safe_array, room.logs_array, wanted)
        compiled.score_values(*self._arrays, *batch, losses.numpy(), keep, room.rows_array)
        if keep:
            self.target_sum.add_(targets.sum())
            self._rolling.sums.add_(room.rows.sum(dim=0, dtype=torch.float64))

    def read(self) -> NumberSummary[RegressionMeasures]:
        """Bring the scores to the host; this waits for the device."""
        found = {name: _regression(*one) for name, one in self._rolling.read().items()}
        return NumberSummary(int(self._rolling.scored), found)


class QuantileScores:
    """Scores of a learner that predicts quantiles.

    Args:
        quantiles: Q numbers in (0, 1), ascending.
        device: where predictions will be.

    Raises:
        ValueError: the quantiles do not ascend within (0, 1).
    """

    def __init__(self, quantiles: Sequence[float], device: torch.device) -> None:
        ends = (0.0, *quantiles, 1.0)
        if not quantiles or any(a >= b for a, b in pairwise(ends)):
            raise ValueError(f"quantiles must ascend within (0, 1); they are {list(quantiles)}")
        self.quantiles = tuple(quantiles)
        self._levels = torch.tensor(quantiles, dtype=torch.float64, device=device)
        self._rolling = Rolling(2 * len(quantiles) + 3, device)
        self._level_arrays = arrays_of(self._levels)
        self._room: QuantileRoom | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return self._rolling.tensors()

    def update(
        self, predictions: Tensor, std: Tensor | None, targets: Tensor, losses: Tensor, keep: Tensor
    ) -> None:
        """Add the outcomes of a batch, in order.

        Args:
            predictions: of the quantiles, [n, Q], in the unit of the target.
            std: not used.
            targets: [n].
            losses: of each example, [n].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        if (compiled := loops_for(targets)) is not None:
            outcomes = predictions.double(), targets.double(), losses.double()
            self._update_compiled(compiled, *outcomes, bool(keep))
            return
        given, wanted = predictions.double(), targets.double()[:, None]
        above = wanted - given
        pinball = torch.maximum(self._levels * above, (self._levels - 1.0) * above)
        inside = (given[:, :1] <= wanted) & (wanted <= given[:, -1:])
        width = given[:, -1:] - given[:, :1]
        ends = [width, inside.double(), losses.double()[:, None]]
        self._rolling.add(torch.cat([pinball, (above <= 0).double(), *ends], dim=1), keep)

    def _update_compiled(
        self, compiled: ModuleType, given: Tensor, targets: Tensor, losses: Tensor, keep: bool
    ) -> None:
        """Do the same by compiled loops, bit for bit; all numbers are fp64."""
        room = self._room
        if room is None or len(room.rows) != len(targets):
            room = self._room = QuantileRoom(len(targets), len(self.quantiles))
        quantiles, wanted = given.numpy(), targets.numpy()
        compiled.miss(*self._level_arrays, quantiles, wanted, room.both_array)
        torch.maximum(*room.both, out=room.pinball)
        batch = (quantiles, wanted, losses.numpy(), keep)
        compiled.score_quantiles(*self._rolling.arrays, *batch, *room.for_score)
        if keep:
            self._rolling.sums.add_(room.rows.sum(dim=0, dtype=torch.float64))

    def read(self) -> NumberSummary[QuantileMeasures]:
        """Bring the scores to the host; this waits for the device."""
        q = len(self.quantiles)
        found = {}
        for name, (n, sums) in self._rolling.read().items():
            means = sums / n if n else np.full(len(sums), np.nan)
            pinball, coverage = means[:q].tolist(), means[q : 2 * q].tolist()
            width, inside, loss = means[2 * q :].tolist()
            found[name] = QuantileMeasures(n, loss, tuple(pinball), tuple(coverage), width, inside)
        return NumberSummary(int(self._rolling.scored), found)


class QuantileRoom:
    """Room for what compiled loops set for a batch; a tensor and its array are one memory.

    Args:
        n: number of examples.
        quantiles: Q.
    """

    def __init__(self, n: int, quantiles: int) -> None:
        with torch.inference_mode(mode=False):
            self.rows = torch.zeros(n, 2 * quantiles + 3)
            both = torch.zeros(2, n, quantiles, dtype=torch.float64)
            self.pinball = torch.zeros(n, quantiles, dtype=torch.float64)
        self.both, self.both_array = both.unbind(), both.numpy()
        self.for_score = (self.pinball.numpy(), self.rows.numpy())


class Room:
    """Room for what compiled loops set for a batch; a tensor and its array are one memory.

    Args:
        n: number of examples.
    """

    def __init__(self, n: int) -> None:
        with torch.inference_mode(mode=False):
            self.rows = torch.zeros(n, 8)
            self.safe, self.logs = (torch.ones(n, dtype=torch.float64) for _ in range(2))
        self.rows_array = self.rows.numpy()
        self.safe_array, self.logs_array = self.safe.numpy(), self.logs.numpy()


def _regression(examples: int, sums: Sums) -> RegressionMeasures:
    loss, absolute, squares, rivals, deviations, known, covered, log_scores = sums.tolist()

    def ratio(part: float, of: float) -> float:
        return part / of if of else math.nan

    return RegressionMeasures(
        examples=examples,
        loss=ratio(loss, examples),
        mae=ratio(absolute, examples),
        rmse=math.sqrt(ratio(squares, examples)) if examples else math.nan,
        r2=1.0 - ratio(rivals, deviations),
        coverage=ratio(covered, known),
        log_score=ratio(log_scores, known),
    )


FLOORS = ("mean", "no_change")
"""Names of the floors of numbers, as the label ``learner`` of metrics shows them."""


class NumberFloors:
    """The floors of a model of numbers, ``mean`` and ``no_change``, and how well they predicted.

    ``mean`` predicts the mean of the targets of the batches before, with their standard deviation;
    ``no_change`` the last of them, with the root mean square of the errors that it has made. Before
    the first target both predict 0. As quantiles they are those of a normal distribution. A caller
    may bound the targets that they take, so that no wild one spoils a mean for good.

    Args:
        device: where targets will be.
        quantiles: that the model predicts; None if it predicts a value.
    """

    def __init__(self, device: torch.device, quantiles: Sequence[float] | None = None) -> None:
        self.moments = torch.zeros(3, dtype=torch.float64, device=device)
        """Number of the targets, their mean, and the sum of their squared distances from it."""
        self.changes = torch.zeros(2, dtype=torch.float64, device=device)
        """Number of the examples that had a target before their batch, and the sum of their squared
        distances from the last one."""
        self.last = torch.zeros((), dtype=torch.float64, device=device)
        self._scores: dict[str, RegressionScores | QuantileScores] = {
            name: fresh_scores(quantiles, device) for name in FLOORS
        }
        self._normal: Tensor | None = None
        self._levels = torch.tensor(quantiles or [], dtype=torch.float64, device=device)
        if quantiles is not None:
            places = [NormalDist().inv_cdf(q) for q in quantiles]
            self._normal = torch.tensor(places, dtype=torch.float64, device=device)
        self._arrays = arrays_of(self.moments, self.changes, self.last)
        normal = self._levels if self._normal is None else self._normal
        self._places = arrays_of(normal, self._levels)
        self._room: FloorRoom | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        named = {"moments": self.moments, "changes": self.changes, "last": self.last}
        for name, scores in self._scores.items():
            named |= {f"{name}.{k}": v for k, v in scores.tensors().items()}
        return named

    def predict(self) -> tuple[Tensor, Tensor]:
        """Return what each floor predicts for any example of the next batch.

        Returns:
            Values and standard deviations, fp64 [2] each, in the order of FLOORS; a deviation is
            NaN until it is known, and above 0.
        """
        count, mean, squares = self.moments.unbind()
        tries, changes = self.changes.unbind()
        std = torch.stack([squares / count, changes / tries]).sqrt()
        return torch.stack([mean, self.last]), torch.where(std > 0.0, std, math.nan)

    def losses(self, targets: Tensor) -> Tensor:
        """Return the losses of each floor and example, fp64 [2, n]: absolute errors, or means of
        the pinball losses of all quantiles.

        Args:
            targets: [n].
        """
        values, std = self.predict()
        missed = targets.double() - values[:, None]
        if self._normal is None:
            return missed.abs()
        spread = std.nan_to_num(0.0)[:, None, None] * self._normal[:, None]
        above = missed[:, None] - spread
        levels = self._levels[:, None]
        return torch.maximum(levels * above, (levels - 1.0) * above).mean(dim=1)

    def score(self, targets: Tensor, losses: Tensor, keep: Tensor) -> None:
        """Score the floors on a batch, before they take its targets.

        Args:
            targets: [n].
            losses: of each floor and example, [2, n].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        values, std = self.predict()
        n = len(targets)
        for k, scores in enumerate(self._scores.values()):
            given, own = values[k].expand(n), std[k].expand(n)
            if self._normal is not None:
                spread = self._normal * std[k].nan_to_num(0.0)
                given = (values[k] + spread).expand(n, -1)
            scores.update(given, own, targets, losses[k], keep)

    def observe(
        self, targets: Tensor, scored: Tensor, learned: Tensor, bounded: Tensor | None = None
    ) -> None:
        """Score the floors on a batch, then take its targets.

        Args:
            targets: [n].
            scored: bool, 0-dim; where it is False no score changes.
            learned: bool, 0-dim; where it is False no mean changes.
            bounded: the targets as they are taken, [n]; None for the targets themselves.
        """
        taken = targets if bounded is None else bounded
        if (compiled := loops_for(targets)) is not None:
            both = targets.double(), taken.double()
            self._observe_compiled(compiled, *both, scored, bool(learned))
            return
        self.score(targets, self.losses(targets), scored)
        self.learn(taken, learned)

    def _observe_compiled(
        self, compiled: ModuleType, targets: Tensor, taken: Tensor, scored: Tensor, learned: bool
    ) -> None:
        """Do the same by compiled loops, bit for bit; targets are fp64."""
        room, own = self._room, targets.numpy()
        if room is None or room.n != len(own):
            room = self._room = FloorRoom(len(own), len(self._levels))
        compiled.predict_numbers(*self._arrays, own, *self._places, *room.for_predict)
        if self._normal is None:
            given, losses = room.values, room.both[0, :, 0]
        else:
            given, losses = room.given, torch.maximum(*room.both).mean(dim=1)
        for k, scores in enumerate(self._scores.values()):
            scores.update(given[k], room.stds[k], targets, losses[k], scored)
        if learned:
            total, own = taken.sum().item(), taken.numpy()
            compiled.square_distances(own, self._arrays[-1], total, *room.for_squares)
            sums = (room.around.sum().item(), room.changes.sum().item())
            compiled.learn_numbers(*self._arrays, own, total, *sums)

    def learn(self, targets: Tensor, keep: Tensor) -> None:
        """Take the targets of a batch.

        Args:
            targets: [n].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        new, n = targets.double(), len(targets)
        count, mean, squares = self.moments.unbind()
        more = count + n
        step = new.mean() - mean
        around = (new - new.mean()).square().sum()
        merged = torch.stack(
            [more, mean + step * n / more, squares + around + step.square() * count * n / more]
        )
        had_last = count > 0
        changed = torch.where(had_last, (new - self.last).square().sum(), 0.0)
        tried = self.changes + torch.stack([had_last * float(n), changed])
        self.changes.copy_(torch.where(keep, tried, self.changes))
        self.moments.copy_(torch.where(keep, merged, self.moments))
        self.last.copy_(torch.where(keep, new[-1], self.last))

    def read(self) -> dict[str, AnyNumberScores]:
        """Bring the scores to the host, by floor; this waits for the device."""
        return {name: scores.read() for name, scores in self._scores.items()}


class FloorRoom:
    """Room for what compiled loops set for a batch; a tensor and its array are one memory.

    Args:
        n: number of examples.
        quantiles: how many are predicted; 0 for values.
    """

    def __init__(self, n: int, quantiles: int) -> None:
        floors, self.n = len(FLOORS), n
        with torch.inference_mode(mode=False):
            self.values, self.stds = torch.zeros(2, floors, n, dtype=torch.float64).unbind()
            self.given = torch.zeros(floors, n, quantiles, dtype=torch.float64)
            self.both = torch.zeros(2, floors, max(1, quantiles), n, dtype=torch.float64)
            self.around, self.changes = (torch.zeros(n, dtype=torch.float64) for _ in range(2))
        found = (self.values, self.stds, self.given, self.both)
        self.for_predict = tuple(tensor.numpy() for tensor in found)
        self.for_squares = (self.around.numpy(), self.changes.numpy())


def worse_than(model: AnyNumberScores, floors: Mapping[str, AnyNumberScores]) -> list[str]:
    """Return in words where a model loses more than a floor over the last WINDOW examples.

    A value is judged by its RMSE, too: where most numbers are alike, the median has a small loss.

    Args:
        model: its scores.
        floors: those of the floors, on the same examples, by name.
    """
    mine, found = model.windows[str(WINDOW)], []
    for name, floor in floors.items():
        theirs = floor.windows[str(WINDOW)]
        if theirs.examples < WINDOW:
            continue
        pairs = [("loss", mine.loss, theirs.loss)]
        if isinstance(mine, RegressionMeasures) and isinstance(theirs, RegressionMeasures):
            pairs.append(("RMSE", mine.rmse, theirs.rmse))
        worse = [f"{what} {own:.4g} against {its:.4g}" for what, own, its in pairs if own > its]
        if worse:
            found.append(f"below the floor {name}: {', '.join(worse)}")
    return found


def fresh_scores(
    quantiles: Sequence[float] | None, device: torch.device
) -> RegressionScores | QuantileScores:
    """Return the scores of a learner that has predicted nothing yet.

    Args:
        quantiles: that it predicts; None if it predicts a value.
        device: where predictions will be.
    """
    return RegressionScores(device) if quantiles is None else QuantileScores(quantiles, device)
