"""The demo's view in the terminal: a panel that is drawn again, or a line for each point."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from service.commands.demonstration.report import Point, called
from service.monitoring.recovery import ShiftRecovery

BLOCKS = "▁▂▃▄▅▆▇█"
COLUMNS = 60
UNEVENNESS_FLOOR = 1e-9


@dataclass(frozen=True)
class Span:
    """The examples that a panel is wide."""

    begin: int
    examples: int

    def column(self, example: int) -> int | None:
        """Return the column of an example; None before the first."""
        column = (example - self.begin) * COLUMNS // self.examples
        return min(COLUMNS - 1, column) if column >= 0 else None


def panel(
    points: Sequence[Point], shifts: Sequence[ShiftRecovery], span: Span, title: str, note: str
) -> Panel:
    """Return the run as sparklines over examples, with the shifts.

    Args:
        points: the run so far.
        shifts: those that were sent.
        span: the part of the run that is shown.
        title: of the panel.
        note: the line below.
    """
    if not points:
        return Panel(Text("waiting for the first batch …"), title=title)
    now, grid = points[-1], Table.grid(padding=(0, 1))

    def spark(value: Callable[[Point], float], limits: tuple[float, float] | None = None) -> Text:
        cells: list[float | None] = [None] * COLUMNS
        for point in points:
            if (column := span.column(point.examples)) is not None:
                cells[column] = value(point)
        return _spark(cells, limits)

    def accuracy_of(name: str) -> Callable[[Point], float]:
        return lambda point: point.accuracies.get(name, math.nan)

    rows = [
        ("shift", _marks(shifts, now.examples, span), ""),
        *(
            (
                f"accuracy {called(name)}",
                spark(accuracy_of(name), (0.0, 1.0)),
                f"{accuracy:.1%}",
            )
            for name, accuracy in now.accuracies.items()
        ),
        ("scale s", spark(lambda p: math.log(p.scale)), f"{now.scale:.3f}"),
        (
            "gain spread",
            spark(lambda p: math.log(p.gains[5] / p.gains[1])),
            f"{now.gains[1]:.2f} … {now.gains[5]:.2f}",
        ),
    ]
    for name, cells, value in rows:
        grid.add_row(Text(name, style="bold"), cells, value)
    return Panel(Group(grid, Text(note, style="dim")), title=title, expand=False)


def line(point: Point) -> str:
    """Return a point as a line of text."""
    return (
        f"{point.examples:>7,} examples  accuracy {_accuracies(point):>6}  "
        f"scale {point.scale:6.3f}  gains {point.gains[1]:6.2f} … {point.gains[5]:6.2f}"
    )


def _accuracies(point: Point) -> str:
    """Return the served learner's rolling accuracy, and those of its shadows in brackets."""
    shadows = [*point.accuracies.items()][1:]
    shown = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in shadows)
    return f"{point.accuracy:.1%}" + (f" ({shown})" if shadows else "")


def _marks(shifts: Sequence[ShiftRecovery], learned: int, span: Span) -> Text:
    row = [" "] * COLUMNS
    for shift in shifts:
        column = span.column(shift.example)
        if column is not None and shift.example <= learned:
            for offset, letter in enumerate(f"▼{shift.what}"[: COLUMNS - column]):
                row[column + offset] = letter
    return Text("".join(row), style="bold yellow")


def _spark(cells: Sequence[float | None], span: tuple[float, float] | None) -> Text:
    known = [c for c in cells if c is not None and math.isfinite(c)]
    if not known:
        return Text()
    low, high = span or (min(known), max(known))
    letters = (" " if c is None or not math.isfinite(c) else _block(c, low, high) for c in cells)
    return Text("".join(letters), style="cyan")


def _block(value: float, low: float, high: float) -> str:
    share = (value - low) / max(high - low, UNEVENNESS_FLOOR)
    return BLOCKS[min(len(BLOCKS) - 1, max(0, int(share * len(BLOCKS))))]
