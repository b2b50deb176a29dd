"""Labels of one id that add up until the time of its question is over."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.fold.state import State
from service.log.labels import Result, hash_of
from service.trainer.joining.joins import added
from streams.batch import InvalidBatchError
from streams.rows.rows import Chunk, Rows
from tests.support.lives import Life, a_life, cuts_of
from tests.support.named import a_row_spec, a_row_state, some_rows
from tests.support.questions import ask, fields_of, label, questions
from tests.support.states import CPU, HYPERPARAMETERS, a_spec

pytestmark = pytest.mark.anyio


def numbers() -> State:
    spec = replace(a_spec(optimizer="pool"), classes=0, task="regression")
    return State(spec, HYPERPARAMETERS, CPU)


def learned(life: Life) -> list[tuple[object, str]]:
    """Return the labels that had waited and are learned, and the result of each."""
    return [(join.label, str(join.result)) for cut in cuts_of(life.server) for join in cut.met]


async def test_labels_of_an_id_add_up_until_its_question_closes() -> None:
    life = await a_life(keeps="sum", ttl=120.0, make=numbers)
    ask(life.server, "a", "b")
    assert await life.decided(a=1.5, b=4) == ["added", "added"]
    assert await life.decided(a=1.5) == ["added"]
    await life.pass_time(60)
    assert await life.decided(a=-0.25) == ["added"]
    assert life.replica.state.examples == 0
    await life.pass_time(70)
    assert learned(life) == [(2.75, "joined"), (4.0, "joined")]
    assert await life.decided(a=1) == ["late"]
    assert life.replica.joins.waiting == {}
    await life.replayed()
    await life.end()


@pytest.mark.parametrize("keeps_a_checkpoint", [False, True])
async def test_a_sum_outlasts_a_restart(keeps_a_checkpoint: bool) -> None:
    life = await a_life(keeps="sum", ttl=60.0, make=numbers)
    ask(life.server, "a")
    assert await life.decided(a=0.1) == ["added"]
    if keeps_a_checkpoint:
        life.keep()
    await life.again()
    assert await life.decided(a=0.2) == ["added"]
    await life.again()
    await life.pass_time(62)
    [(total, _)] = learned(life)
    assert total == pytest.approx(0.3, abs=1e-7)
    await life.replayed()
    await life.end()


async def test_labels_before_their_question_add_up_too_and_are_unknown_without_it() -> None:
    life = await a_life(keeps="sum", ttl=120.0, grace=30.0, make=numbers)
    assert await life.decided(a=1, b=1) == ["waiting", "waiting"]
    assert await life.decided(a=2, b=2) == ["added", "added"]
    ask(life.server, "a")
    assert await life.decided(a=4) == ["added"]
    await life.pass_time(31)
    assert life.replica.joins.counts[Result.UNKNOWN] == 1
    assert {*life.replica.joins.waiting} == {hash_of("a")}
    await life.again()
    await life.pass_time(100)
    assert learned(life) == [(7.0, "joined")]
    await life.replayed()
    await life.end()


async def test_with_a_time_out_the_sum_is_learned_then_and_later_labels_are_late() -> None:
    life = await a_life(keeps="sum", timeout=30.0, default="0", make=numbers)
    ask(life.server, "a", "b")
    assert await life.decided(a=2) == ["added"]
    await life.pass_time(32)
    assert learned(life) == [(2.0, "joined"), (0.0, "timeout")]
    assert await life.decided(a=1, b=1) == ["late", "late"]
    assert life.replica.state.examples == 2
    await life.replayed()
    await life.end()


async def test_a_sum_is_learned_before_its_question_is_evicted() -> None:
    life = await a_life(keeps="sum", most_bytes=2_000, make=numbers)
    for k in range(30):
        ask(life.server, f"{k}")
        assert await life.decided(**{f"{k}": k}) == ["added"]
    assert life.replica.joins.evicted == 0
    assert life.replica.joiner.summary.bytes <= 2_000
    done = len(learned(life))
    assert learned(life) == [(float(k), "joined") for k in range(done)]
    assert 20 < done < 30
    await life.replayed()
    await life.end()


async def test_a_label_that_takes_the_sum_out_of_float32_is_invalid() -> None:
    life = await a_life(keeps="sum", ttl=60.0, make=numbers)
    ask(life.server, "a")
    assert await life.decided(a=3e38) == ["added"]
    assert await life.decided(a=3e38) == ["invalid"]
    assert await life.decided(a=-3e38) == ["added"]
    await life.pass_time(62)
    assert learned(life) == [(0.0, "joined")]
    await life.end()


async def test_rows_have_sums_too_and_a_word_is_invalid() -> None:
    def state() -> State:
        return a_row_state(
            replace(a_row_spec(optimizer="sgd", bits=6), task="regression"), HYPERPARAMETERS
        )

    life = await a_life(keeps="sum", ttl=60.0, make=state)
    own = Rows(tuple(Chunk(chunk.own) for chunk in some_rows(1, 1).chunks))
    life.server.ask(fields_of(questions(["a"], own)))
    assert await life.decided(a=1) == ["added"]
    assert await life.decided(a="no") == ["invalid"]
    assert await life.decided(a=0.5) == ["added"]
    [(total, _)] = [(w.label, w.weight) for w in life.replica.joins.waiting.values()]
    assert total == "1.5"
    await life.end()


@pytest.mark.parametrize("more", ["no", 1e39, "1e400", "nan"])
def test_only_finite_numbers_are_added(more: str | float) -> None:
    with pytest.raises(InvalidBatchError):
        added(0.0, more)


IDS = st.sampled_from([f"q{k}" for k in range(6)])
ASK = st.tuples(st.just("ask"), st.lists(IDS, min_size=1, max_size=3, unique=True))
LABEL = st.tuples(st.just("label"), st.dictionaries(IDS, st.integers(-2, 2), min_size=1))
REST = st.tuples(st.sampled_from(["turn", "keep", "again"]), st.none())
WAIT = st.tuples(st.just("wait"), st.integers(1, 15))


@settings(max_examples=30, deadline=None)
@given(st.lists(ASK | LABEL | REST | WAIT, min_size=10, max_size=40), st.booleans())
def test_each_label_is_in_one_sum_or_refused_whatever_the_order(
    actions: list[tuple[str, Any]], has_default: bool
) -> None:
    async def run() -> None:
        timeout = 20.0 if has_default else None
        life = await a_life(
            keeps="sum", ttl=30.0, grace=10.0, timeout=timeout, default="0", make=numbers
        )
        sent: dict[object, list[tuple[str, int]]] = {}
        results: dict[object, list[str]] = {}
        asked: set[str] = set()
        for kind, what in actions:
            life.clock.now += 0.01
            if kind == "ask" and (new := [text for text in what if text not in asked]):
                asked.update(new)
                ask(life.server, *new)
            elif kind == "label":
                sent[label(life.server, **what)] = [*what.items()]
            elif kind == "turn":
                await life.turn(2)
            elif kind == "keep":
                await life.stand_still()
                life.keep()
            elif kind == "wait":
                life.clock.now += what
                await life.watch()
            elif kind == "again":
                results |= {entry: [*own] for entry, own in life.results.items()}
                await life.again()
        await life.settle()
        await life.pass_time(70)
        await life.replayed()
        results |= life.results
        joins = life.replica.joins
        assert joins.waiting == {}
        totals = dict.fromkeys(map(hash_of, asked), 0)
        for entry, labels in sent.items():
            for (text, value), result in zip(labels, results[entry], strict=True):
                if result in ("added", "waiting") and text in asked:
                    totals[hash_of(text)] += value
        given_up = joins.counts[Result.UNKNOWN] > 0
        each = [join for cut in cuts_of(life.server) for join in cut.met]
        places = [join.place for join in each]
        assert len(places) == len(set(places)), "no question is learned twice"
        for join in each:
            assert join.place is not None
            own = life.server.asked[join.place.entry][b"ids"]
            own = own[16 * join.place.row : 16 * join.place.row + 16]
            assert given_up or join.label == totals[own]
        await life.end()

    asyncio.run(run())
