"""Whether the targets of `tests.benchmarks.results` are reached, and every loss."""

from collections.abc import Callable, Iterator, Sequence

from tests.benchmarks.accuracy.cells import Found
from tests.benchmarks.accuracy.plan import ACCURACY, CONTENDERS, LOSS
from tests.benchmarks.accuracy.standings import (
    AT_ONCE,
    ECE,
    EQUAL,
    FIRST,
    OWN,
    Lead,
    Match,
    Verdict,
    leads,
    place,
    verdict,
)
from tests.benchmarks.accuracy.study import SOURCES
from tests.benchmarks.measure import table

NEED, LEAST = 19, -0.005
"""Streams at or above the best peer at equal delay, and the least lead on any."""
NEED_AT_ONCE, NEED_LOSS, NEED_ECE, MOST_ECE = 17, 18, 19, 0.03
LEAST_FIRST = -0.01
"""The least lead in the first examples."""


def worst_leads(found: Found, match: Match, score: str) -> list[Lead]:
    """Return the smallest lead of each stream that was compared."""
    return [all_leads[0] for name in SOURCES if (all_leads := leads(found, name, match, score))]


def calibrations(found: Found, match: Match) -> list[Lead]:
    """Return by how much Funnel's calibration error is below the most that is allowed."""
    return [
        Lead(name, "", MOST_ECE, one.mean(ECE))
        for name in SOURCES
        if (one := place(found, name, CONTENDERS[OWN], match.batches(name)[0]))
    ]


def verdicts(found: Found) -> str:
    """Return a table of the targets."""
    return table(
        ("target", "streams compared", "reached on", "worst stream", "verdict"),
        list(_verdict_rows(found)),
    ) + (
        "\nA stream is compared with the peers that have run on it; all learn `outdoor` one by\n"
        "one. A target is *open* as long as streams that have not run can decide. Streams count\n"
        "at the length of their rows, even where [the study's](#missing) is longer. Differences\n"
        "are those of Funnel and the peer, over the seeds that both have run: points of accuracy,\n"
        "of which more is better, or nats of log loss, of which less is better.\n"
    )


def _verdict_rows(found: Found) -> Iterator[tuple[str, ...]]:
    for match in EQUAL:
        own = verdict(worst_leads(found, match, ACCURACY), NEED, floor=LEAST)
        yield _row(
            f"{match.title}: at or above the best peer on {NEED} of 21, never more than 0.5 below",
            own, _points,
        )  # fmt: skip
    own = verdict(worst_leads(found, AT_ONCE, ACCURACY), NEED_AT_ONCE)
    yield _row(f"{AT_ONCE.title}: at or above the best on {NEED_AT_ONCE} of 21", own, _points)
    for match in EQUAL:
        own = verdict(worst_leads(found, match, LOSS), NEED_LOSS, is_strict=True)
        yield _row(f"{match.title}: log loss below every peer on {NEED_LOSS} of 21", own, _nats)
    for match in EQUAL:
        own = verdict(calibrations(found, match), NEED_ECE)
        yield _row(
            f"Funnel with batches of {match.own}: calibration error at most 3 % on {NEED_ECE}",
            own, lambda lead: f"{100 * lead.other:.1f} %",
        )  # fmt: skip
    own = verdict(worst_leads(found, EQUAL[1], FIRST), len(SOURCES), LEAST_FIRST)
    yield _row(
        f"{EQUAL[1].title}: the first 1,000 examples within 1 point of the best peer", own, _points
    )


def _row(target: str, own: Verdict, shown: Callable[[Lead], str]) -> tuple[str, ...]:
    worst = "–"
    if own.worst:
        peer = f", {own.worst.peer}" if own.worst.peer else ""
        worst = f"`{own.worst.stream}`{peer}: {shown(own.worst)}"
    return target, str(own.compared), str(own.reached), worst, f"**{own.word}**"


def _points(lead: Lead) -> str:
    return f"{round(100 * lead.margin, 2) + 0.0:+.2f}"


def _nats(lead: Lead) -> str:
    return f"{round(-lead.margin, 3) + 0.0:+.3f} nats"


def losses(found: Found) -> str:
    """Return every lead that is negative."""
    lines = []
    for match in (*EQUAL, AT_ONCE):
        ahead = [
            f"`{lead.stream}` {_points(lead)} ({lead.peer}, {100 * lead.other:.2f} for "
            f"{100 * lead.own:.2f})"
            for name in SOURCES
            for lead in leads(found, name, match, ACCURACY)
            if lead.margin < 0
        ]
        lines.append(_listed(f"Accuracy, {match.title}", ahead))
    for match in EQUAL:
        ahead = [
            f"`{lead.stream}` {_nats(lead)} ({lead.peer}, {-lead.other:.3f} for {-lead.own:.3f})"
            for name in SOURCES
            for lead in leads(found, name, match, LOSS)
            if lead.margin <= 0
        ]
        lines.append(_listed(f"Log loss, {match.title}", ahead))
    ahead = [
        f"`{lead.stream}` {_points(lead)} ({lead.peer})"
        for name in SOURCES
        for lead in leads(found, name, EQUAL[1], FIRST)
        if lead.margin < 0
    ]
    for match in EQUAL:
        above = [
            f"`{lead.stream}` {100 * lead.other:.1f} %"
            for lead in calibrations(found, match)
            if lead.margin < 0
        ]
        lines.append(_listed(f"Calibration error above 3 %, batches of {match.own}", above))
    lines.append(_listed(f"The first 1,000 examples, {EQUAL[1].title}", ahead))
    return "\n".join(lines) + "\n"


def _listed(title: str, items: Sequence[str]) -> str:
    return f"- **{title}**: {', '.join(items) if items else 'none in the cells that have run'}."
