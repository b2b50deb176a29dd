"""A version of rows is read as they were, whatever is written, moved or dropped later."""

import threading

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.pool.tables.rows import CAPACITY, Field, Rows
from funnel.pool.tables.version import Version

FIELDS = (
    Field("weight", slice(0, 2), torch.zeros(2, 3), of_run=False),
    Field("state", slice(0, 2), torch.ones(2, 1), of_run=False),
)
WIDTH = 6


def rows_of(count: int) -> Rows:
    found = Rows(FIELDS, 0.0)
    found.use(count)
    return found


def write(rows: Rows, which: np.ndarray, value: float) -> None:
    state = torch.full((len(which), 2), value)
    rows.write(torch.from_numpy(which), torch.full((len(which), WIDTH), value), state)


def taken(rows: Rows, version: Version, which: np.ndarray) -> np.ndarray:
    """Return what the version reads, with the replacements it has still to take."""
    weights, epochs = version.read(which)
    rows.of_weights.bring(weights, epochs, rows.start_of, which)
    return weights


steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("use"), st.integers(1, CAPACITY)),
    st.tuples(st.just("rescale"), st.sampled_from([0.5, 3.0])),
    st.tuples(st.just("replace"), st.integers(0, 1)),
    st.tuples(st.just("settle"), st.just(0)),
    st.tuples(st.just("version"), st.just(0)),
    st.tuples(st.just("drop"), st.just(0)),
    st.tuples(st.just("start"), st.integers(1, 50)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=40))
def test_a_version_reads_what_a_copy_would_hold(script: list[tuple[str, float]]) -> None:
    rows = rows_of(30)
    held: list[tuple[Version, np.ndarray, np.ndarray]] = []
    for what, value in script:
        match what:
            case "write":
                random = np.random.default_rng(int(value))
                which = random.random(rows.used) < random.random()
                write(rows, which.nonzero()[0], float(random.normal()))
            case "use":
                rows.use(rows.used + int(value))
            case "rescale":
                rows.rescale(value)
            case "replace":
                rows.from_the_start(torch.arange(2) == int(value))
            case "settle":
                rows.settle()
            case "version":
                copies = rows.weights[: rows.used].numpy().copy(), rows.epochs[: rows.used].copy()
                held.append((rows.version(), *copies))
            case "drop":
                held = held[1:]
            case "start":
                rows.start(int(value))
        for version, weights, epochs in held:
            found = version.read(np.arange(version.used)[::-1])
            np.testing.assert_array_equal(found[0], weights[::-1])
            np.testing.assert_array_equal(found[1], epochs[::-1])


def test_versions_that_nobody_holds_cost_nothing() -> None:
    rows = rows_of(100)
    first, last = rows.version(), rows.version()
    write(rows, np.arange(10), 1.0)
    del first
    write(rows, np.arange(20), 2.0)
    assert last.kept == 20
    del last
    rows.version()
    assert not rows._in_use()


def test_a_version_that_is_held_for_long_keeps_each_row_once() -> None:
    rows = rows_of(1000)
    version = rows.version()
    random = np.random.default_rng(0)
    for value in range(300):
        write(rows, np.unique(random.integers(0, 1000, 20)), float(value))
        rows.version()
    assert version.kept <= 1000
    assert len(version._kept) < 12
    assert not version.read(np.arange(1000))[0].any()


def test_readers_in_other_threads_never_see_a_later_write() -> None:
    """Every write of the rows has one value, which is that of the version after it."""
    rows, everyone = rows_of(20_000), np.arange(20_000)
    newest: list[tuple[Version, float]] = [(rows.version(), 0.0)]
    wrong: list[float] = []
    reads, is_over = [0, 0], threading.Event()

    def reader(number: int) -> None:
        while not is_over.is_set():
            version, value = newest[0]
            found = version.read(everyone[: version.used])[0]
            if not (found == value).all():
                wrong.append(value)
            reads[number] += 1

    threads = [threading.Thread(target=reader, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    value = 0.0
    while min(reads) < 150 or value < 50:
        value += 1.0
        for part in np.array_split(np.arange(rows.used), 7):
            write(rows, part, value)
        if value in (20.0, 40.0):  # the memory moves
            rows.use(2 * rows.used)
            write(rows, np.arange(rows.used), value)
        newest[0] = rows.version(), value
    is_over.set()
    for thread in threads:
        thread.join()
    assert not wrong
