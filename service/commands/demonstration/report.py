"""The report of a demo: when each learner recovered from each shift, and a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from service.commands.comparisons.picture import save, set_title
from service.monitoring.recovery import SERVED, ShiftRecovery
from streams.recovery import WINDOW, WITHIN

SHOWN_SHIFTS = 10
PAST = 10_000
"""Examples with whose mean scale a scale is compared."""


@dataclass(frozen=True)
class Point:
    """The learners at one moment of the run."""

    examples: int
    accuracies: dict[str, float]
    """Rolling prequential accuracies by learner, the served learner's first."""
    overall: dict[str, float]
    """Prequential accuracies of all examples so far, by learner."""
    scale: float
    """Scale of the served model's weights."""
    gains: tuple[float, ...]
    """Quantiles 0, .05, .25, .5, .75, .95, 1 of the gains of these weights."""

    @property
    def accuracy(self) -> float:
        """The served learner's rolling accuracy."""
        return next(iter(self.accuracies.values()))


def cells(shifts: Sequence[ShiftRecovery]) -> list[list[str]]:
    """Return a row for each of the newest shifts that were measured.

    It has the shift, its example, the goal, and for each learner the examples to its recovery. A
    segment that has not ended has the goal that the page shows, too.
    """
    measured = [shift for shift in shifts if shift.goal is not None][-SHOWN_SHIFTS:]
    return [
        [shift.what, f"{shift.example:,}", f"{shift.goal:.1%}"]
        + [_shown(taken, shift.end) for taken in shift.recovery_examples.values()]
        for shift in measured
    ]


def _shown(taken: int | None, end: int | None) -> str:
    if taken is not None:
        return f"{taken:,}"
    return "not yet" if end is None else "not"


def called(learner: str) -> str:
    """Return what the demo calls a learner."""
    return "Funnel" if learner == SERVED else learner


def table(shifts: Sequence[ShiftRecovery], overall: Mapping[str, float]) -> Table:
    """Return what each learner reached, as a table.

    Args:
        shifts: those that were sent; the newest that were measured are shown.
        overall: accuracy of all examples by learner.
    """
    shown = Table(
        title="Examples from each shift until the learner was within 2 points of the goal",
        show_footer=True,
    )
    shown.add_column("shift", "accuracy of all")
    shown.add_column("at example", justify="right")
    shown.add_column("goal", justify="right")
    for name, share in overall.items():
        shown.add_column(called(name), f"{share:.2%}", justify="right")
    for row in cells(shifts):
        shown.add_row(*row)
    return shown


def relative_scales(points: Sequence[Point]) -> list[float]:
    """Return each scale divided by the geometric mean of those of the PAST examples before it.

    A scale wanders by itself; its movement at a shift stands out against its own past. NaN where
    there is none.

    Args:
        points: in order.
    """
    found = []
    for k, point in enumerate(points):
        past = [p.scale for p in points[:k] if p.examples >= point.examples - PAST]
        mean = math.exp(sum(map(math.log, past)) / len(past)) if past else math.nan
        found.append(point.scale / mean)
    return found


def plot(points: Sequence[Point], shifts: Sequence[ShiftRecovery], name: str, path: Path) -> None:
    """Write the run as a picture: accuracy, scale and gains over examples, with the shifts.

    A dot ends the first window in which the served learner has recovered; its number is the
    examples that took, without the window.

    Args:
        points: the run; at least one.
        shifts: those that were sent.
        name: of the stream.
        path: where to.

    Raises:
        PictureError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    x = [p.examples for p in points]
    learners = points[-1].accuracies
    for number, learner in enumerate(learners):
        color = "C0" if number == 0 else f"C{2 + number}"
        accuracies = [p.accuracies.get(learner, float("nan")) for p in points]
        top.plot(
            x, accuracies, color=color, alpha=1.0 if number == 0 else 0.7, label=called(learner)
        )
    for shift in shifts:
        taken = shift.recovery_examples.get(SERVED)
        if shift.goal is not None and taken is not None:
            at = (shift.example + taken + WINDOW, shift.goal - WITHIN)
            top.plot(*at, color="C0", marker="o", markersize=5)
            top.annotate(f"{taken:,} ", at, ha="right", va="bottom", color="C0", fontsize=9)
    top.set(ylabel="rolling accuracy", ylim=(0, 1))
    set_title(top, f"funnel demo: {name}")
    if len(learners) > 1:
        top.legend(loc="lower right", fontsize=9)
    middle.plot(x, relative_scales(points), color="C1")
    middle.set(ylabel="scale s ÷\nits mean before")
    for low, high, alpha in ((0, 6, 0.15), (1, 5, 0.25), (2, 4, 0.4)):
        bottom.fill_between(
            x, [p.gains[low] for p in points], [p.gains[high] for p in points],
            color="C2", alpha=alpha, linewidth=0,
        )  # fmt: skip
    bottom.plot(x, [p.gains[3] for p in points], color="C2")
    bottom.set(ylabel="gains p", yscale="log", xlabel="examples learned")
    for axes in (top, middle, bottom):
        for shift in shifts:
            axes.axvline(shift.example, color="0.4", linestyle="--", linewidth=0.8)
    for shift in shifts:
        top.annotate(f" {shift.what}", (shift.example, 0.02), fontsize=9, color="0.3")
    save(figure, path)
