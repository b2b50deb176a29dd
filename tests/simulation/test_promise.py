"""The promise holds under schedules of faults: kills, power cuts, lost answers, full disks."""

from dataclasses import replace

import pytest

from service.log.labels import Join
from service.log.position import BEGINNING, Position
from service.trainer.joining.index import Index
from service.trainer.joining.joins import Joins
from tests.simulation.mutants import MUTANTS, ROOT, Mutant
from tests.simulation.oracle import ViolationError
from tests.simulation.plan import FAULTS, FOREIGN_FAULTS, Plan, shrink
from tests.simulation.runs import failure, run
from tests.simulation.world import simulate

SCHEDULES, PART = 2_000, 250
ASKING = 80
"""Schedules in which clients ask, and label their questions later."""

STORED = 125
"""Schedules with checkpoints in object storage."""

FOUND = {
    310: "a model that began after a gap had hyperparameters that no cut recorded",
    383: "a cut of which an entry was gone looked like damage, which no flag accepts",
    875: "cuts were dropped when a gap was accepted, and other processes repeated them",
    2483: "entries that were deleted at the end of the log stayed in the backlog unnoticed",
    6206: "a gap whose record was lost was accepted again as another gap, and entries were lost",
    40192: "a trainer took its lease back and wrote a checkpoint in an epoch that had ended",
    105912: "after a gap, the position of an old checkpoint trimmed new entries with lower ids",
    46635: "a checkpoint and a trim during a takeover looked like damage",
}
"""Seeds whose schedules broke a promise once, and how."""


FOUND_ASKING = {
    3: "a label that came after a question had timed out was learned before the default was",
    13: "a label was in conflict with a default that was never recorded",
    25: "a question that was read while labels were decided on counted as unknown",
}
"""The same of schedules with labels that come later."""


@pytest.mark.parametrize("first", range(0, SCHEDULES, PART))
def test_no_acknowledged_example_is_lost_or_learned_twice(first: int) -> None:
    events, broken = run(first, PART)
    assert not broken, "python -m tests.simulation --replay SEED --shrink shows what happens"
    for kind in {*FAULTS, "server power"} - {"crash"}:
        assert events[kind] > 0, f"the schedules hold every kind of fault, and {kind}"
    assert any(events[kind] for kind in FOREIGN_FAULTS)
    assert events["answered"] > PART, "callers wait for what they sent"
    assert events["segment"] > PART / 2, "the log is archived"


@pytest.mark.parametrize("seed", FOUND)
def test_what_a_schedule_found_once_stays_mended(seed: int) -> None:
    simulate(Plan.of(seed))


def test_each_label_meets_its_question_once_whatever_happens() -> None:
    events, broken = run(0, ASKING, Plan.asking)
    assert not broken, "python -m tests.simulation --labels --replay SEED --shrink shows it"
    assert events["asked"] > 10 * ASKING
    assert events["labelled"] > 10 * ASKING
    assert events["kill"] > ASKING


def test_with_checkpoints_in_object_storage_one_trainer_at_a_time_names_the_newest() -> None:
    events, broken = run(0, STORED, Plan.stored)
    assert not broken, "python -m tests.simulation --stored --replay SEED --shrink shows it"
    assert min(events["partition"], events["suspend"], events["kill"]) > STORED / 2
    assert min(events["full disk"], events["broken disk"], events["rot"]) > 3


@pytest.mark.parametrize("seed", FOUND_ASKING)
def test_what_a_schedule_with_labels_found_once_stays_mended(seed: int) -> None:
    simulate(Plan.asking(seed))


def test_a_label_that_is_joined_wrongly_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "use", lambda *_: None)
    right = Joins.note

    def note(own: Joins, join: Join, now: int, at: Position = BEGINNING) -> None:
        right(own, join, now, at)
        if join.place is not None:
            del own.used[join.place]

    monkeypatch.setattr(Joins, "note", note)
    assert any("is decided on" in failure(Plan.asking(seed)) for seed in range(10))


def test_a_seed_repeats_its_schedule() -> None:
    for plan in (Plan.of(7), Plan.of(8), Plan.asking(7), Plan.stored(7)):
        one, other = list[str](), list[str]()
        assert simulate(plan, one) == simulate(plan, other)
        assert _without_names(one) == _without_names(other)


def _without_names(trace: list[str]) -> list[str]:
    """Return a trace without the names of logs, which are random."""
    return [line.split("log='")[0] for line in trace]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_every_fault_that_is_sown_has_its_place_in_the_code(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.right) == 1


def test_a_plan_is_shrunk_to_what_fails() -> None:
    plan = next(p for p in map(Plan.of, range(1_000)) if "rot" in {f.kind for f in p.faults})
    small = shrink(plan, lambda p: any(fault.kind == "rot" for fault in p.faults))
    assert [fault.kind for fault in small.faults] == ["rot"]
    assert (small.entries, small.machines, small.loss) == (1, (0,), 0.0)


def test_a_broken_promise_is_reported() -> None:
    plan = replace(Plan.of(0), faults=())
    assert failure(plan) == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.trainer.store.KEPT", 1)
        patch.setattr("service.log.cuts.Pending.take", _too_few)
        with pytest.raises(ViolationError):
            simulate(plan)


def _too_few(*_: object) -> None:
    raise ViolationError("a batch is cut wrongly")
