"""What a demo's run showed: when each learner was back after a shift, and a picture."""

from dataclasses import dataclass
from pathlib import Path

from service.fold.scores import WINDOW
from streams.prequential import WITHIN
from streams.sources.catalog import Shift


@dataclass(frozen=True)
class Point:
    """The learners at one moment of the run."""

    examples: int
    accuracies: dict[str, float]
    """Rolling, prequential, by learner, the served one first."""
    scale: float
    """Of the served model's weights."""
    gains: tuple[float, ...]
    """Quantiles 0, .05, .25, .5, .75, .95, 1 of their gains."""

    @property
    def accuracy(self) -> float:
        """Of the served model."""
        return next(iter(self.accuracies.values()))


@dataclass(frozen=True)
class Recovery:
    """How the learners came through one shift."""

    shift: Shift
    goal: float
    """Rolling accuracy that counts as recovered: WITHIN the best learner's before the next."""
    examples: dict[str, int | None]
    """After the shift, by learner, to the begin of the first window that lies behind it and
    reaches the goal, to about a second's worth; None where none does."""


def recoveries(points: list[Point], shifts: list[Shift]) -> list[Recovery]:
    """Return how long each learner took after each shift but the first, which begins the stream.

    Shifts that the next follows within two windows are left out.
    """
    found = []
    last = points[-1].examples if points else 0
    ends = [shift.example for shift in shifts[1:]] + [last]
    for shift, end in zip(shifts, ends, strict=False):
        behind = [p for p in points if shift.example + WINDOW <= p.examples <= end]
        if shift.example == 0 or end - shift.example < 2 * WINDOW or not behind:
            continue
        goal = max(behind[-1].accuracies.values()) - WITHIN
        taken = {name: _first(behind, name, goal, shift) for name in behind[-1].accuracies}
        found.append(Recovery(shift, goal, taken))
    return found


def _first(behind: list[Point], learner: str, goal: float, shift: Shift) -> int | None:
    for point in behind:
        if point.accuracies.get(learner, 0.0) >= goal:
            return point.examples - shift.example - WINDOW
    return None


def tell(recovery: Recovery) -> str:
    """Return one line for a reader."""
    each = ", ".join(
        f"{name} after {taken:,} examples" if taken is not None else f"{name} not"
        for name, taken in recovery.examples.items()
    )
    return f"shift to {recovery.shift.what}: back at {recovery.goal:.1%}: {each}"


def plot(points: list[Point], shifts: list[Shift], name: str, path: Path) -> None:
    """Write the run as a picture: accuracy, scale and gain band over examples, shifts marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    x = [p.examples for p in points]
    learners = points[-1].accuracies
    for number, learner in enumerate(learners):
        color = "C0" if number == 0 else f"C{2 + number}"
        accuracies = [p.accuracies.get(learner, float("nan")) for p in points]
        top.plot(x, accuracies, color=color, alpha=1.0 if number == 0 else 0.7, label=learner)
    for recovery in recoveries(points, shifts):
        taken = recovery.examples[next(iter(learners))]
        if taken is not None:
            at = recovery.shift.example + WINDOW + taken
            top.plot([at], [recovery.goal], color="C0", marker="o", markersize=5)
    top.set(ylabel="rolling accuracy", ylim=(0, 1), title=f"funnel demo: {name}")
    if len(learners) > 1:
        top.legend(loc="lower right", fontsize=9)
    middle.plot(x, [p.scale for p in points], color="C1")
    middle.set(ylabel="scale s")
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
    figure.savefig(path, dpi=110)
