"""The service's learner compared with its peers on one stream: table and picture."""

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from service.commands.comparisons.evaluation import Run, evaluate
from service.commands.comparisons.picture import check_picture, save, set_title
from service.commands.comparisons.tally import SHOWN
from service.fold.scoring.floors import Level, below
from service.settings import Settings
from streams.delays.delay import AnyDelay
from streams.errors import FunnelError
from streams.peers.peers import Peer
from streams.prequential import BLOCK, Curve, curve, rolling, rolling_points
from streams.progress import progress_bar
from streams.recovery import WINDOW, Points, recoveries
from streams.sources.catalog import Shift, Stream

ACCURATE = "accuracy"
"""The score by which runs are compared unless another is chosen."""
BY = {ACCURATE: "accuracy", "auc": "AUC", "log_loss": "log loss"}
"""The scores by which runs can be compared, and their names in text."""
ACCURACY = """\
Accuracy is prequential: each batch is predicted before it is learned; ± is the 95 % interval of
the mean over seeds. Peers are shown at the best of their settings by {by}, chosen for this stream
in hindsight.
"""
SCORES = """\
Log loss is in nats; balanced is the mean recall of the classes; rare recall is that of the rarer of
two classes; ECE is the expected calibration error. The floors are rules without a model, on the
same batches.
"""
LATER = """\
Labels come later than their questions, by --delay {delay}, counted in examples. All learners and
the floors answer with what has come until then, and learn labels in the order in which they come.
Standardizing needs no labels: peers standardize each question when it is asked.
"""
RECOVERY = f"""\
Recovery is the median, over shifts and seeds, of the examples after a shift until the {{of}} of
the next {WINDOW:,} is within 2 points of the best learner's at the end of the segment.
"""


def interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of the mean, by Student's t; NaN for one value."""
    if len(values) < 2:
        return math.nan
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return float(stats.t.ppf(0.975, len(values) - 1)) * spread


def shown(values: Sequence[float], digits: int = 3) -> str:
    """Return mean ± interval."""
    half = interval(values)
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if math.isnan(half) else f"{mean} ± {half:.{digits}f}"


def explained(text: str, is_recovering: bool, by: str) -> str:
    """Return the text below a table.

    Args:
        text: on accuracy, with ``{by}``.
        is_recovering: whether recoveries are shown.
        by: one of BY.
    """
    recovery = RECOVERY.format(of="AUC" if by == "auc" else "accuracy")
    return text.format(by=BY[by]) + SCORES + recovery * is_recovering


def later_shown(delay: AnyDelay | None) -> str:
    """Return the text on labels that come later; empty if they do not."""
    return "" if delay is None else LATER.format(delay=delay)


def heading(name: str, count: str, seeds: int, batch_size: int, delay: AnyDelay | None) -> str:
    """Return the line above a table.

    Args:
        name: of the stream.
        count: of its examples, as text.
        seeds: their number.
        batch_size: examples that are predicted before their labels are known.
        delay: of the labels, if they come later than that.
    """
    late = f", @{batch_size} (labels come in batches of {batch_size})" if delay is None else ""
    return f"{name}: {count}, {seeds} {'seed' if seeds == 1 else 'seeds'}{late}\n"


def check_by(by: str, classes: int) -> None:
    """Check that runs can be compared by a score.

    Raises:
        FunnelError: there are not two classes, and it is the AUC.
    """
    if by == "auc" and classes != 2:
        raise FunnelError(f"--by auc is for two classes, but there are {classes}")


def recoveries_of(
    learners: Sequence[Sequence[Curve]], shifts: Sequence[int]
) -> list[list[int | None]]:
    """Return the recoveries of each learner, over all seeds and shifts.

    Args:
        learners: for each, its curve at each seed.
        shifts: index of the first example after each shift.
    """
    points = [[rolling_points(own) for own in curves] for curves in learners]
    return recoveries_by(points, shifts, BLOCK * len(learners[0][0]))


def recoveries_by(
    learners: Sequence[Sequence[Points]], shifts: Sequence[int], end: int
) -> list[list[int | None]]:
    """Return the recoveries of each learner, over all seeds and shifts.

    Args:
        learners: for each, its points at each seed.
        shifts: index of the first example after each shift.
        end: index after the last example of the curves.
    """
    taken: list[list[int | None]] = [[] for _ in learners]
    for points in zip(*learners, strict=True):
        found = recoveries(points, shifts, end)
        for mine, more in zip(taken, found, strict=True):
            mine.extend(more)
    return taken


def median_recovery(taken: Sequence[int | None]) -> float:
    """Return the median; inf if the learner did not recover, NaN where nothing shifts."""
    examples = [math.inf if one is None else one for one in taken]
    return statistics.median(examples) if examples else math.nan


def examples_shown(examples: float) -> str:
    """Return a number of examples as text."""
    if math.isnan(examples):
        return "–"
    return f"{examples:,.0f}" if math.isfinite(examples) else "never"


def table(runs: Sequence[Run], shifts: Sequence[Shift], digits: int = 3, by: str = ACCURATE) -> str:
    """Return the runs as aligned lines, the best first; with recoveries if there are any.

    Args:
        runs: over the same seeds.
        shifts: of the stream.
        digits: of all numbers, after the point.
        by: the score that orders them, and from which recovery is read; see `Run.merit`.
    """
    taken = taken_of(runs, shifts, by)
    names = [name for name in SHOWN if any(run.score(name) is not None for run in runs)]
    ends = ("recovery",) if any(taken) else ()
    lines = [("learner", "setting", "accuracy", *(SHOWN[name] for name in names), *ends)]
    for run, own in sorted(zip(runs, taken, strict=True), key=lambda found: -found[0].merit(by)):
        setting = f"{run.setting} (best of {run.tuned})" if run.tuned > 1 else run.setting
        recovered = examples_shown(median_recovery(own))
        scores = [run.score(name) for name in names]
        others = ["–" if score is None else f"{score:.{digits}f}" for score in scores]
        recovery = (recovered,) if ends else ()
        lines.append((run.learner, setting, shown(run.accuracies, digits), *others, *recovery))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def below_floors(runs: Sequence[Run], is_balanced: bool) -> str:
    """Return a line for each floor that the first run is below; empty if it is above all.

    Args:
        runs: the own one first.
        is_balanced: whether it weighs examples by their class.
    """
    own, *others = runs
    floors = {run.learner.removesuffix(", a floor"): run for run in others if run.is_floor}
    levels = {name: _level(run) for name, run in floors.items()}
    found = below(_level(own), levels, is_balanced)
    return "".join(f"{own.learner} is {words}.\n" for words in found)


def _level(run: Run) -> Level:
    loss, balanced = run.score("log_loss"), run.score("balanced_accuracy")
    unknown = math.nan
    return Level(
        run.accuracy, unknown if loss is None else loss, unknown if balanced is None else balanced
    )


def taken_of(
    runs: Sequence[Run], shifts: Sequence[Shift], by: str = ACCURATE
) -> list[list[int | None]]:
    """Return the recoveries of each run; empty where the stream has no shift to recover from."""
    end = max((BLOCK * len(curve(found)) for run in runs for found in run.outcomes), default=0)
    starts = [shift.example for shift in shifts]
    return recoveries_by([run.points(by) for run in runs], starts, end)


def plot(runs: Sequence[Run], stream: Stream, path: Path) -> None:
    """Write rolling accuracy over examples, the mean over seeds, as a picture with the shifts."""
    from matplotlib import color_sequences
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=color_sequences["tab20"])
    for k, run in enumerate(runs):
        mean = np.mean([rolling(curve(found)) for found in run.outcomes], axis=0)
        setting = f"\n  {run.setting}" if run.tuned > 1 else ""
        axes.plot(
            BLOCK * np.arange(1, len(mean) + 1), mean, label=f"{run.learner}{setting}",
            linewidth=2.5 if k == 0 else 1.0, zorder=3 if k == 0 else 2,
        )  # fmt: skip
    for shift in stream.shifts:
        axes.axvline(shift.example, color="0.4", linestyle="--", linewidth=0.8)
        axes.annotate(f" {shift.what}", (shift.example, 0.01), fontsize=9, color="0.3")
    set_title(axes, f"funnel compare: {stream.name}")
    axes.set(
        xlabel="examples", ylim=(0, 1),
        ylabel=f"accuracy of the last {WINDOW:,}, before learning them",
    )  # fmt: skip
    figure.legend(fontsize=8, loc="outside right upper")
    save(figure, path)


def run(
    stream: Stream,
    settings: Settings,
    peers: Mapping[str, Peer],
    seeds: Sequence[int],
    picture: Path | None,
    by: str = ACCURATE,
    delay: AnyDelay | None = None,
) -> int:
    """Compare, print the table, and give the reason for each peer that is skipped.

    Args:
        stream: the stream to learn.
        settings: settings of the service.
        peers: peers by name.
        seeds: seeds of the stream.
        picture: where to write the rolling accuracies as a picture; None for no picture.
        by: one of BY.
        delay: of the labels, in examples; None if each batch is learned before the next.

    Raises:
        PictureError: the picture cannot be written.
        FunnelError: the runs cannot be compared by this score.
    """
    check_by(by, stream.classes)
    check_picture(picture)
    torch.set_num_threads(settings.threads)
    reasons = {name: peer.missing(stream) for name, peer in peers.items()}
    for name, reason in reasons.items():
        if reason:
            sys.stderr.write(f"{name} is skipped: {reason}\n")
    taken = {name: peer for name, peer in peers.items() if not reasons[name]}
    passes = len(seeds) * (1 + sum(len(peer.settings) for peer in taken.values()))
    with progress_bar(f"{stream.name}, {passes} runs", passes * stream.examples) as bar:
        runs = evaluate(stream, settings, taken, seeds, bar.update, by, delay)
    explanation = explained(ACCURACY, any(taken_of(runs, stream.shifts, by)), by)
    warning = below_floors(runs, settings.hyperparameters.is_balanced)
    count = f"{stream.examples:,} examples"
    head = heading(stream.name, count, len(seeds), settings.batch_size, delay)
    sys.stdout.write(
        f"{warning}{head}\n{table(runs, stream.shifts, by=by)}\n{explanation}{later_shown(delay)}"
    )
    if picture is not None:
        plot(runs, stream, picture)
        sys.stdout.write(f"picture: {picture}\n")
    return 0
