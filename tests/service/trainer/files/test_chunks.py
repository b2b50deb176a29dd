"""Large tables: a checkpoint writes the blocks that changed, and has all the chunks it needs."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.fold.state import State
from service.fold.step import Fold
from service.trainer import blocks, chunks
from service.trainer.checkpoint import Checkpoint, decode
from service.trainer.disk import SystemDisk
from service.trainer.store import KEPT, SCRAP, CheckpointStore
from tests.simulation.disk import Platter, SimulatedDisk
from tests.support.checkpoints import NUMERICS, PROGRESS, kept
from tests.support.named import a_row_spec, a_row_state, extend, some_rows
from tests.support.states import HYPERPARAMETERS, same_tensors

ROWS = 30_000


class CountingDisk(SystemDisk):
    """The machine's, and how many bytes are written to it."""

    def __init__(self) -> None:
        self.written = 0

    def rename(self, old: Path, new: Path) -> None:
        self.written += old.stat().st_size
        super().rename(old, new)


@contextmanager
def all_are_large() -> Iterator[None]:
    """Let every table be large, and let chunks be small."""
    with (
        patch.object(blocks, "LEAST_BYTES", 0),
        patch.object(chunks, "CHUNK_BYTES", 1_500),
        patch.object(chunks, "MOST_SMALL", 3),
    ):
        yield


@pytest.fixture
def large() -> Iterator[None]:
    with all_are_large():
        yield


def a_state() -> State:
    """Return a state of rows with two learners, both of which have a table."""
    shadowed = replace(HYPERPARAMETERS, shadow=("adagrad",))
    return a_row_state(a_row_spec(optimizer="sgd", bits=10), shadowed)


def learn(state: State, seed: int, n: int = 12, late: bool = False) -> None:
    """Learn rows; late ones have a column and a label more, so that the tables grow."""
    rows = some_rows(seed, n, late, classes=3 if late else 2)
    extend(state, rows)
    Fold(state).step(rows)


def a_large_state() -> State:
    """Return a state with a table of ROWS rows."""
    state = a_row_state(a_row_spec(bits=18))
    table = state.served.table
    assert table is not None
    keys = np.random.default_rng(0).integers(0, 2**63, ROWS).astype(np.uint64)
    table.index.admit(keys)
    table.rows.use(table.index.used)
    return state


def touch(state: State, rows: list[int]) -> None:
    """Change some rows, as a batch does."""
    table, numbers = state.served.table, torch.tensor(sorted(rows))
    assert table is not None
    held = table.rows
    held.write(numbers, held.weights[numbers] + 1.0, held.state[numbers])


def copy_of(state: State, cut: int, store: CheckpointStore | None = None) -> Checkpoint:
    progress = replace(PROGRESS, cut=cut)
    return Checkpoint.of(state, progress, store.ledger if store else None)


def resumed(store: CheckpointStore) -> State:
    copy = store.load()
    assert copy is not None
    state = State(copy.spec, copy.hyperparameters, torch.device("cpu"))
    state.load(copy.tensors, copy.version, copy.examples, copy.drifts)
    return state


def chunks_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if chunks.NAME.fullmatch(path.name)}


def needed(store: CheckpointStore) -> set[str]:
    found = set[str]()
    for path in store.files():
        manifest = decode(path.read_bytes()).manifest
        found |= manifest.chunks if manifest else set()
    return found


def test_a_checkpoint_writes_only_the_blocks_that_changed(tmp_path: Path) -> None:
    disk = CountingDisk()
    store, state = CheckpointStore(tmp_path, NUMERICS, print, disk), a_large_state()
    assert state.served.table is not None
    for cut in (1, 2):  # one of each side
        before = disk.written
        assert store.write(copy_of(state, cut, store)).bytes == disk.written - before
    whole = disk.written / 2
    assert whole > ROWS * 200
    for cut in (3, 4, 5):
        before = disk.written
        touch(state, [17, 18, ROWS // 2, ROWS // 3])
        copy = copy_of(state, cut, store)
        assert len(copy.tables[""].numbers) <= 6, "of two checkpoints, as sides take turns"
        info = store.write(copy)
        assert info.bytes == disk.written - before
        assert disk.written - before < 0.25 * whole, "digests and places, and few blocks"
        assert store.newest_bytes == info.bytes, "the default distance of checkpoints follows it"
    assert same_tensors(resumed(store).tensors(), state.tensors())


def test_the_bytes_that_are_kept_and_written_are_bounded(tmp_path: Path) -> None:
    """Blocks that changed lie in more and more chunks; those that are half empty are given up."""
    disk, random = CountingDisk(), np.random.default_rng(0)
    store, state = CheckpointStore(tmp_path, NUMERICS, print, disk), a_large_state()
    with patch.object(chunks, "CHUNK_BYTES", 400_000):
        for cut in range(60):
            touch(state, random.choice(ROWS - 1, 100, replace=False).tolist())
            store.write(copy_of(state, cut, store))
            if cut == 1:
                whole, disk.written = disk.written / 2, 0
            there = sum((tmp_path / name).stat().st_size for name in chunks_in(tmp_path))
            assert cut < 1 or there < 2 * 2.5 * whole
    assert disk.written / 58 < 0.3 * whole
    assert same_tensors(resumed(store).tensors(), state.tensors())


def test_a_small_table_stays_in_the_file(tmp_path: Path) -> None:
    state, (store, _) = a_state(), kept(tmp_path)
    learn(state, 0)
    info = store.write(copy_of(state, 1, store))
    assert [info.path] == list(tmp_path.iterdir())
    assert decode(info.path.read_bytes()).metadata["format"] == 5


@pytest.mark.usefixtures("large")
def test_digests_do_not_depend_on_how_a_state_was_saved(tmp_path: Path) -> None:
    state, (store, said) = a_state(), kept(tmp_path)
    for seed in range(8):
        learn(state, seed, late=seed > 4)
        copy = copy_of(state, seed, store)
        info = store.write(copy)
        assert copy.sha256() == info.sha256 == copy_of(state, seed).sha256()
        loaded = kept(tmp_path)[0].load()
        assert loaded is not None
        assert loaded.sha256() == info.sha256
        assert same_tensors(loaded.tensors, copy_of(state, seed).tensors)
    before = info.sha256
    learn(state, 9)
    assert copy_of(state, 9).sha256() != before
    assert said == []


@pytest.mark.usefixtures("large")
def test_a_copy_that_was_made_whole_can_be_written_beside_others(tmp_path: Path) -> None:
    state, (store, _) = a_state(), kept(tmp_path)
    for cut in range(6):
        learn(state, cut)
        copy = copy_of(state, cut, store if cut % 3 else None)
        assert store.write(copy).sha256 == copy_of(state, cut).sha256()
        assert same_tensors(resumed(kept(tmp_path)[0]).tensors(), state.tensors())


@pytest.mark.usefixtures("large")
def test_a_state_of_another_process_is_not_taken_for_the_known_one(tmp_path: Path) -> None:
    one, other, (store, _) = a_state(), a_state(), kept(tmp_path)
    for cut in range(0, 8, 2):
        learn(one, cut)
        learn(other, cut + 1)
        for k, state in enumerate((one, other)):
            store.write(copy_of(state, cut + k, store))
            assert same_tensors(resumed(kept(tmp_path)[0]).tensors(), state.tensors())


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("how", ["a bit", "half", "gone", "empty"])
def test_whatever_file_is_damaged_the_checkpoint_before_is_loaded(tmp_path: Path, how: str) -> None:
    state, (store, _) = a_state(), kept(tmp_path)
    digests = []
    for cut in range(5):
        learn(state, cut)
        digests.append(store.write(copy_of(state, cut, store)).sha256)
    newest = store.files()[-1]
    manifest = decode(newest.read_bytes()).manifest
    assert manifest is not None
    assert len(manifest.chunks) > 1
    for name in (newest.name, *manifest.chunks):
        path = tmp_path / name
        raw = path.read_bytes()
        match how:
            case "a bit":
                path.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
            case "half":
                path.write_bytes(raw[: len(raw) // 2])
            case "empty":
                path.write_bytes(b"")
            case _:
                path.unlink()
        again, said = kept(tmp_path)
        copy = again.load()
        assert copy is not None
        assert copy.sha256() == digests[-2]
        if path != newest or how != "gone":
            assert newest.name in said[0]
            assert name in said[0], "the file is named"
            assert "damaged" in said[0]
        path.write_bytes(raw)
    assert kept(tmp_path)[0].load() is not None


@pytest.mark.usefixtures("large")
def test_after_damage_the_next_checkpoint_of_that_side_is_whole_again(tmp_path: Path) -> None:
    state, (store, _) = a_state(), kept(tmp_path)
    for cut in range(4):
        learn(state, cut)
        store.write(copy_of(state, cut, store))
    manifest = decode(store.files()[-1].read_bytes()).manifest
    assert manifest is not None
    for name in manifest.chunks:
        (tmp_path / name).write_bytes(b"damaged")
    again, _ = kept(tmp_path)
    state = resumed(again)
    learn(state, 4)
    again.write(copy_of(state, 4, again))
    assert same_tensors(resumed(kept(tmp_path)[0]).tensors(), state.tensors())


@pytest.mark.usefixtures("large")
def test_chunks_that_no_checkpoint_needs_go_with_the_next_one(tmp_path: Path) -> None:
    state, (store, _) = a_state(), kept(tmp_path)
    unneeded, removed = set[str](), 0
    for cut in range(12):
        learn(state, cut, late=cut > 6)
        store.write(copy_of(state, cut, store))
        there = chunks_in(tmp_path)
        assert needed(store) <= there
        assert not unneeded & there
        unneeded, removed = there - needed(store), removed + len(unneeded)
    assert removed > 10
    for cut in range(12, 15):
        store.write(copy_of(state, cut, store))
    assert needed(store) == chunks_in(tmp_path)
    assert len(store.files()) == KEPT


@pytest.mark.usefixtures("large")
def test_a_new_process_clears_the_chunks_of_killed_writers(tmp_path: Path) -> None:
    state, (store, _) = a_state(), kept(tmp_path)
    learn(state, 0)
    store.write(copy_of(state, 0, store))
    (tmp_path / f"chunk-a-{64 * '0'}.safetensors").write_bytes(b"of a writer that was killed")
    (tmp_path / f"{SCRAP}x").write_bytes(b"half")
    again, _ = kept(tmp_path)
    assert again.load() is not None
    again.clear_scraps()
    assert chunks_in(tmp_path) == needed(again)
    assert len(list(tmp_path.iterdir())) == 1 + len(needed(again))


@pytest.mark.usefixtures("large")
def test_a_chunk_that_another_trainer_has_just_written_is_not_removed(tmp_path: Path) -> None:
    state, (store, _) = a_state(), kept(tmp_path)
    fresh = tmp_path / f"chunk-b-{64 * '0'}.safetensors"
    for cut in range(3):
        learn(state, cut)
        if cut == 1:
            fresh.write_bytes(b"of a checkpoint to come")
        store.write(copy_of(state, cut, store))
        assert fresh.exists() == (cut == 1)


@pytest.mark.usefixtures("large")
def test_a_base_that_another_process_has_removed_is_written_again(tmp_path: Path) -> None:
    state, (store, _) = a_state(), kept(tmp_path)
    learn(state, 0)
    for cut in range(3):
        store.write(copy_of(state, cut, store))
    for name in chunks_in(tmp_path):
        (tmp_path / name).unlink()
    for cut in (3, 4):  # one of each side
        before = set(tmp_path.iterdir())
        with pytest.raises(OSError, match=r"chunk-[ab]-.* is missing; the next"):
            store.write(copy_of(state, cut, store))
        assert set(tmp_path.iterdir()) == before, "nothing has changed"
        store.write(copy_of(state, cut, store))
        assert same_tensors(resumed(kept(tmp_path)[0]).tensors(), state.tensors())


@pytest.mark.usefixtures("large")
def test_a_chunk_that_rots_is_found_by_later_checkpoints_and_written_again(tmp_path: Path) -> None:
    state, (store, _) = a_state(), kept(tmp_path)
    learn(state, 0, n=40)
    for cut in (1, 2):
        store.write(copy_of(state, cut, store))
    [chunk, *others] = sorted(chunks_in(tmp_path))
    assert len(others) > 3
    raw = bytearray((tmp_path / chunk).read_bytes())
    raw[-1] ^= 1
    (tmp_path / chunk).write_bytes(raw)

    def write(cuts: Iterable[int]) -> None:
        for cut in cuts:
            store.write(copy_of(state, cut, store))

    with pytest.raises(OSError, match=f"{chunk} does not match; the next one writes it again"):
        write(range(3, 3 + 2 * len(others)))
    write((50, 51))
    again, said = kept(tmp_path)
    assert same_tensors(resumed(again).tensors(), state.tensors())
    assert said == []


@pytest.mark.usefixtures("large")
def test_a_standby_that_reads_while_the_trainer_removes_finds_a_newer_one(tmp_path: Path) -> None:
    state, (store, _) = a_state(), kept(tmp_path)

    def write(count: int) -> None:
        for _ in range(count):
            learn(state, state.version)
            store.write(copy_of(state, state.version, store))

    class Slow(SystemDisk):
        """The trainer writes many checkpoints while a chunk is read for the first time."""

        def read(self, path: Path) -> bytes:
            if chunks.NAME.fullmatch(path.name) and state.version == KEPT:
                write(KEPT + 2)
            return super().read(path)

    write(KEPT)
    said = list[str]()
    copy = CheckpointStore(tmp_path, NUMERICS, said.append, Slow()).load()
    assert copy is not None
    assert copy.sha256() == copy_of(state, 0).sha256()
    assert said == []


class KilledError(BaseException):
    """The process is killed."""


class Killer:
    """It kills a process at an operation of its disk."""

    def __init__(self) -> None:
        self.left = -1
        """Moments until then; negative: never."""

    def __call__(self, when: str, operation: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError(f"{when} {operation}")


EVENTS = st.one_of(
    st.tuples(st.just("learn"), st.integers(0, 10_000)),
    st.tuples(st.just("learn late"), st.integers(0, 10_000)),
    st.tuples(st.just("write"), st.just(0)),
    st.tuples(st.sampled_from(["kill", "power cut", "full disk"]), st.integers(1, 60)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, min_size=3, max_size=25), st.integers(0, 1_000))
def test_a_process_that_is_killed_at_any_operation_resumes_bit_for_bit(
    events: list[tuple[str, int]], seed: int
) -> None:
    """Every event but learning writes a checkpoint; some fail on the way."""
    folder, killer = Path("/checkpoints"), Killer()
    platter = Platter(random.Random(seed), lambda *_: None)
    disk = SimulatedDisk(platter, killer)
    state, digests, durable = a_state(), {0: ""}, 0

    def begun() -> CheckpointStore:
        return CheckpointStore(folder, NUMERICS, pytest.fail, disk)

    with all_are_large():
        store = begun()
        for what, number in events:
            if what.startswith("learn"):
                learn(state, number, n=1 + number % 12, late="late" in what)
                continue
            cut = state.version
            copy = copy_of(state, cut, store)
            digests[cut] = copy_of(state, cut).sha256()
            try:
                disk.is_full = what == "full disk"
                killer.left = number if what in ("kill", "power cut") else -1
                store.write(copy)
                durable = cut
            except OSError:
                assert disk.is_full
            except KilledError:
                killer.left = -1
                if what == "power cut":
                    platter.cut_power()
                store = begun()
                found = store.load()
                store.clear_scraps()
                state = a_state()
                assert (found.version if found else 0) >= durable
                if found is not None:
                    assert found.sha256() == digests[found.version]
                    state.load(found.tensors, found.version, found.examples, found.drifts)
                    assert copy_of(state, 0).sha256() == digests[found.version]
            killer.left, disk.is_full = -1, False
            whole = begun()
            whole.load()
            assert whole.files() == sorted(whole._infos), "every checkpoint can be loaded"
