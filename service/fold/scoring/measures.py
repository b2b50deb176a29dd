"""Measures of predicted classes, on the host, from counts of outcomes.

Probabilities are counted in BINS bins of a logit z. With exactly two open classes z is that of
class 1, and a *hit* is an example of class 1: AUC, PR-AUC, ECE and the calibration curve then say
whether that probability can be trusted wherever it lies. With any other number of classes z is the
logit of the predicted class's probability, its confidence, and a hit is a right prediction. The
bins are equally wide in z / (4 + |z|): 0.002 wide at z = 0, 0.008 at ±4, 0.05 at ±16.

- AUC: the probability that an example of class 1 has a higher z than one of class 0; a tie counts
  one half (J. A. Hanley, B. J. McNeil, 'The meaning and use of the area under a receiver operating
  characteristic (ROC) curve', 1982).
- PR-AUC: average precision, Σ (R_k - R_{k-1}) P_k over descending thresholds.
- ECE: expected calibration error over up to CALIBRATION_BINS bins of equal mass,
  Σ (n_b / n) · |mean probability - share of hits| (M. P. Naeini, G. F. Cooper, M. Hauskrecht,
  'Obtaining well calibrated probabilities using Bayesian binning', 2015).
- Brier score: mean of Σ_c (p_c - y_c)² over all classes, in [0, 2]; with two classes it is twice
  the score of one probability (G. W. Brier, 'Verification of forecasts expressed in terms of
  probability', 1950).
- balanced accuracy: mean recall of the classes that have examples.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

BINS = 4_096
SPREAD = 4.0
"""|z| below which half of the bins lie."""
MAX_CONFUSED = 64
"""Most classes of a confusion matrix; with more there is none."""
CALIBRATION_BINS = 15
MEASURES = ("log_loss", "brier", "auc", "pr_auc", "ece", "balanced_accuracy")
"""Fields of `Measures` that are scores, as metrics name them."""


class CalibrationPoint(NamedTuple):
    """One bin of the calibration curve."""

    probability: float
    """Mean probability."""
    share: float
    """Share of hits."""
    examples: int


@dataclass(frozen=True)
class Measures:
    """Scores of the predictions of some examples; NaN where one is not defined."""

    examples: int
    """Number of the examples whose probabilities are known; earlier versions did not keep them."""
    accuracy: float
    log_loss: float
    """Mean cross-entropy in nats."""
    brier: float
    auc: float
    """NaN unless exactly two classes are open."""
    pr_auc: float
    """NaN unless exactly two classes are open."""
    ece: float
    balanced_accuracy: float
    recall: tuple[float, ...]
    """By class; NaN for a class without examples."""
    precision: tuple[float, ...]
    """By class; NaN for a class that was never predicted."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts by class of the label, then by predicted class; empty with more than MAX_CONFUSED
    classes."""
    calibration: tuple[CalibrationPoint, ...]
    """By ascending probability."""

    def scores(self) -> dict[str, float]:
        """Return the scores that are defined, by the names of MEASURES."""
        found = {name: float(getattr(self, name)) for name in MEASURES}
        return {name: value for name, value in found.items() if not math.isnan(value)}


class ByClass(NamedTuple):
    """Counts of examples by class, int64 [classes]."""

    labels: Counts
    predicted: Counts
    right: Counts

    @classmethod
    def of(cls, confusion: Counts) -> "ByClass":
        """Return the counts of a confusion matrix, [classes, classes]."""
        return cls(confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal())


def centres() -> npt.NDArray[np.float64]:
    """Return the probabilities in the middles of the bins, [BINS]."""
    place = (np.arange(BINS) + 0.5) / (BINS / 2) - 1.0
    logits = SPREAD * place / (1.0 - np.abs(place))
    found: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(logits, -500.0, 500.0)))
    return found


_PROBABILITIES = centres()


def ratio(part: npt.NDArray[np.generic], of: Counts) -> npt.NDArray[np.float64]:
    """Return part / of, NaN where ``of`` is 0."""
    found: npt.NDArray[np.float64] = np.full(len(of), np.nan)
    np.divide(part, of, out=found, where=of > 0)
    return found


def area_under_roc(histogram: Counts) -> float:
    """Return the AUC; NaN unless both classes have examples.

    Args:
        histogram: [2, BINS], by label.
    """
    negative, positive = histogram.astype(np.float64)
    pairs = negative.sum() * positive.sum()
    below = negative.cumsum() - 0.5 * negative
    return float((positive * below).sum() / pairs) if pairs else math.nan


def average_precision(histogram: Counts) -> float:
    """Return the PR-AUC; NaN without an example of class 1.

    Args:
        histogram: [2, BINS], by label.
    """
    positive, all_ = histogram[1, ::-1], histogram.sum(axis=0)[::-1]
    if not (total := positive.sum()):
        return math.nan
    precision = positive.cumsum() / np.maximum(all_.cumsum(), 1)
    return float((positive * precision).sum() / total)


def calibration_of(histogram: Counts) -> tuple[CalibrationPoint, ...]:
    """Return the calibration curve in bins of equal mass; those without examples are not in it.

    A bin of the logit is not divided: it belongs where the middle of its mass lies.

    Args:
        histogram: [2, BINS], by hit.
    """
    mass = histogram.sum(axis=0)
    if not (total := int(mass.sum())):
        return ()
    middle = (mass.cumsum() - 0.5 * mass) / total
    own = np.minimum((middle * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    examples, sums, hits = (
        np.bincount(own, weights=values, minlength=CALIBRATION_BINS)
        for values in (mass, mass * _PROBABILITIES, histogram[1])
    )
    found = zip(sums.tolist(), hits.tolist(), examples.tolist(), strict=True)
    return tuple(CalibrationPoint(p / n, h / n, int(n)) for p, h, n in found if n)


def measures_of(
    examples: int,
    accuracy: float,
    log_loss: float,
    brier: float,
    histogram: Counts,
    by_class: ByClass,
    confusion: Counts | None,
    is_binary: bool,
) -> Measures:
    """Return the measures of some examples.

    Args:
        examples: their number.
        accuracy: in [0, 1].
        log_loss: mean, in nats.
        brier: mean.
        histogram: [2, BINS], by hit.
        by_class: of open classes.
        confusion: [classes, classes] of open classes; None with more than MAX_CONFUSED.
        is_binary: whether exactly two classes are open.
    """
    curve = calibration_of(histogram)
    recall = ratio(by_class.right, by_class.labels)
    precision = ratio(by_class.right, by_class.predicted)
    known = recall[~np.isnan(recall)]
    gaps = sum(one.examples * abs(one.probability - one.share) for one in curve)
    return Measures(
        examples=examples,
        accuracy=accuracy,
        log_loss=log_loss,
        brier=brier,
        auc=area_under_roc(histogram) if is_binary else math.nan,
        pr_auc=average_precision(histogram) if is_binary else math.nan,
        ece=gaps / sum(one.examples for one in curve) if curve else math.nan,
        balanced_accuracy=float(known.mean()) if len(known) else math.nan,
        recall=tuple(recall.tolist()),
        precision=tuple(precision.tolist()),
        confusion=() if confusion is None else tuple(map(tuple, confusion.tolist())),
        calibration=curve,
    )
