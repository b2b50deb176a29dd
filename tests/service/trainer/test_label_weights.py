"""Negatives that are learned at once, and corrected when the positive comes."""

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.fold.state import State
from service.log.cuts import Cut
from service.log.labels import Join, Place, Result
from service.log.position import EntryId, Position
from service.log.questions import Questions
from service.trainer.joining.examples import Rules
from service.trainer.joining.importance import importance
from streams.rows.rows import Chunk, Rows
from tests.support.lives import Life, a_life, cuts_of
from tests.support.named import a_row_spec, a_row_state, records, some_rows
from tests.support.questions import ask, fields_of, label, questions
from tests.support.states import HYPERPARAMETERS

pytestmark = pytest.mark.anyio

P = 0.25
"""Probability of a positive in the answers."""


def answered(*ids: str) -> Questions:
    """Return questions that were answered with the probability P of class 1."""
    answers = np.array([[1 - P, P]] * len(ids), np.float16)
    return replace(questions(ids), answers=answers)


async def weighted() -> Life:
    return await a_life(timeout=0.0, default="0", is_weighted=True)


def learned(life: Life) -> list[tuple[str, object, float]]:
    """Return the result, the label and the weight of all that is learned, in order."""
    return [
        (str(join.result), join.label, join.weight * join.factor)
        for cut in cuts_of(life.server)
        for own in (*cut.joins.values(), cut.met)
        for join in own
        if join.place is not None
    ]


async def test_a_negative_is_learned_at_once_and_corrected_by_its_label() -> None:
    life = await weighted()
    life.server.ask(fields_of(answered("a", "b")))
    await life.settle()
    assert learned(life) == [("assumed", 0, (1 - P) * (1 + P))] * 2
    await life.pass_time(600)
    assert await life.decided(a=1, b=0) == ["corrected", "duplicate"]
    assert [own for _, _, own in learned(life)][2:] == [1 + P]
    assert await life.decided(a=1, b=1) == ["duplicate", "corrected"]
    assert await life.decided(a=0, b=2) == ["conflict", "conflict"]
    assert life.replica.state.examples == 4
    await life.replayed()
    await life.end()


async def test_a_label_that_comes_before_its_negative_is_recorded_is_learned_after_it() -> None:
    life = await weighted()
    life.server.ask(fields_of(answered("a", "b")))
    entry = label(life.server, a=1, b=0)
    for _ in range(4):  # nobody looks at the questions before the labels are read
        await life.pipeline.turn(asyncio.Event(), 0.001)
    await life.settle()
    assert life.results[entry] == ["waiting", "duplicate"]
    negative = "assumed", 0, (1 - P) * (1 + P)
    assert learned(life) == [negative, ("corrected", 1, 1 + P), negative]
    assert life.replica.joins.waiting == {}
    await life.replayed()
    await life.end()


@pytest.mark.parametrize("value", [0, 1])
async def test_a_label_before_its_question_is_learned_after_the_negative(value: int) -> None:
    life = await weighted()
    assert await life.decided(a=value) == ["waiting"]
    life.server.ask(fields_of(answered("a")))
    await life.settle()
    assert [result for result, *_ in learned(life)] == ["assumed", "corrected"][: 1 + value]
    assert life.replica.joins.waiting == {}
    await life.replayed()
    await life.end()


async def test_any_death_between_the_two_decisions_learns_both_once() -> None:
    life = await weighted()
    for k in range(3):
        life.server.ask(fields_of(answered(f"a{k}", f"b{k}")))
        label(life.server, **{f"a{k}": 1, f"b{k}": 1})
    await life.settle()
    last = life.server.last_cut
    kinds = Counter(result for result, *_ in learned(life))
    assert kinds == {"assumed": 6, "corrected": 6}
    for number in range(1, last + 1):
        part = await weighted()
        part.server.entries, part.server.last = dict(life.server.entries), life.server.last
        part.server.asked, part.server.added = dict(life.server.asked), life.server.added
        part.server.last_asked = life.server.last_asked
        recorded = [(n, text) for n, text in life.server.every_cut if n <= number]
        part.server.cuts = {n: t for n, t in life.server.cuts.items() if n <= number}
        part.server.last_cut, part.server.every_cut = number, recorded
        await part.again()
        await part.settle()
        assert Counter(result for result, *_ in learned(part)) == kinds
        assert part.replica.joins.waiting == {}
        await part.end()
    await life.end()


async def test_a_new_service_corrects_what_another_has_assumed() -> None:
    first = await weighted()
    first.server.ask(fields_of(answered("a")))
    await first.settle()
    second = await Life(
        first.server, first.clock, first.keep(), timeout=0.0, default="0", is_weighted=True
    ).begin()
    assert await second.decided(a=1) == ["corrected"]
    assert second.replica.state.examples == 2
    await second.end()
    await first.end()


async def test_questions_are_learned_at_once_although_entries_of_the_log_wait_to_be_read() -> None:
    life = await weighted()
    life.server.ask(fields_of(answered("a", "b", "c")))
    await life.replica.watch_questions(life.log, await life.log.extent(), False)
    assert life.replica.joiner.met == 3
    await life.end()


async def test_negatives_fill_batches_without_a_wait() -> None:
    life = await weighted()
    ask(life.server, *map(str, range(30)))
    life.pipeline._max_wait = 1_000.0
    async with asyncio.timeout(20):
        while life.replica.state.examples < 30:
            await life.turn()
    await life.end()


async def test_rows_have_a_half_where_the_model_knew_no_negative() -> None:
    def state() -> State:
        return a_row_state(a_row_spec(optimizer="sgd", bits=8), HYPERPARAMETERS)

    life = await a_life(timeout=0.0, default="no", is_weighted=True, make=state)
    rows, _ = records(0, 4)
    life.server.add({b"rows": orjson.dumps(rows), b"labels": b'["yes", "yes", "yes", "yes"]'})
    await life.settle()
    own = Rows(tuple(Chunk(chunk.own) for chunk in some_rows(1, 2).chunks))
    asked = replace(questions(["a", "b"], own), answers=np.ones((2, 1), np.float16))
    life.server.ask(fields_of(asked))
    await life.settle()
    assert await life.decided(a="yes") == ["corrected"]
    assert [own for _, _, own in learned(life)] == [0.75, 0.75, 1.5]
    await life.replayed()
    await life.end()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_loss_is_least_at_the_true_probability(p: float) -> None:
    """Of all questions, each a negative, and a share p of them positives, too."""
    own = replace(questions(["a"]), answers=np.array([[1 - p, p]]))
    rules = Rules((4, 2), lambda _: None, ())
    negative = importance(Result.ASSUMED, own, 0, 0, rules)
    positive = importance(Result.CORRECTED, own, 0, 0, rules)
    assert p * positive / (p * positive + negative) == pytest.approx(p)


@pytest.mark.parametrize("given_", [float("nan"), -1.0, 2.0])
def test_an_answer_that_is_no_probability_counts_as_a_half(given_: float) -> None:
    own = replace(questions(["a"]), answers=np.array([[given_, 0.0]]))
    rules = Rules((4, 2), lambda _: None, ())
    assert importance(Result.CORRECTED, own, 0, 0, rules) == 1.5


def test_a_cut_names_negatives_and_the_labels_that_correct_them() -> None:
    place, entry = Place(EntryId(4, 1), 2), EntryId(5, 0)
    met = Join(Result.ASSUMED, place, label=0, weight=0.9375)
    corrected = Join(Result.CORRECTED, place, factor=1.25)
    cut = Cut(Position(entry), joins={entry: (corrected,)}, met=(met,), now=77)
    text = cut.to_json()
    assert '"joins":{"5-0":[["4-1",2,"corrected",1.25]]}' in text
    assert '"met":[["4-1",2,0,0.9375,"assumed"]]' in text
    assert Cut.from_json(1, text.encode()) == cut


IDS = st.sampled_from([f"q{k}" for k in range(6)])
ASK = st.tuples(st.just("ask"), st.lists(IDS, min_size=1, max_size=3, unique=True))
LABEL = st.tuples(st.just("label"), st.dictionaries(IDS, st.integers(0, 1), min_size=1))
REST = st.tuples(st.sampled_from(["turn", "keep", "again"]), st.none())


@settings(max_examples=40, deadline=None)
@given(st.lists(ASK | LABEL | REST | REST, min_size=10, max_size=40))
def test_each_question_is_once_a_negative_and_at_most_once_a_positive(
    actions: list[tuple[str, Any]],
) -> None:
    async def run() -> None:
        life = await weighted()
        asked: set[str] = set()
        first: dict[str, int] = {}
        later, sure = set[str](), set[str]()
        for kind, what in actions:
            life.clock.now += 0.01
            if kind == "ask" and (new := [text for text in what if text not in asked]):
                asked.update(new)
                life.server.ask(fields_of(answered(*new)))
            elif kind == "label":
                label(life.server, **what)
                first = what | first
                later |= {text for text, value in what.items() if value}
                sure |= {text for text, value in what.items() if value and text in asked}
            elif kind == "turn":
                await life.turn(2)
            elif kind == "keep":
                await life.stand_still()
                life.keep()
            elif kind == "again":
                await life.again()
        await life.settle()
        await life.replayed()
        kinds = Counter(result for result, *_ in learned(life))
        certain = sure | {text for text in asked if first.get(text)}
        assert kinds["assumed"] == len(asked)
        assert len(certain) <= kinds["corrected"] <= len(later & asked)
        assert {*kinds} <= {"assumed", "corrected"}
        await life.end()

    asyncio.run(run())
