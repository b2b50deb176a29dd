"""Checkpoints: whole or not at all, and any damage is found."""

import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.fold.state import State, step
from service.log.position import EntryId, Position, Progress
from service.trainer import checkpoint
from service.trainer.checkpoint import (
    BLANK,
    KEPT,
    Checkpoint,
    CheckpointStore,
    DamagedError,
    UnreadableError,
    decode,
    encode,
    write_atomically,
)
from tests.support.states import CPU, a_batch, a_state, same_tensors

PROGRESS = Progress("uuid", 3, 17, Position(EntryId(5, 1), 4), 9, 1, 70, 30)
NUMERICS = {"torch": "x"}


def a_copy(steps: int = 3, progress: Progress = PROGRESS) -> Checkpoint:
    state = a_state()
    for k in range(steps):
        step(state, a_batch(k))
    return Checkpoint.of(state, progress)


def kept(directory: Path) -> tuple[CheckpointStore, list[str]]:
    said: list[str] = []
    return CheckpointStore(directory, NUMERICS, said.append), said


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    copy = a_copy()
    checkpoints, said = kept(tmp_path)
    info = checkpoints.write(copy)
    assert info.bytes == info.path.stat().st_size
    again = kept(tmp_path)[0].load()
    assert again is not None
    assert again.progress == PROGRESS
    assert (again.spec, again.hyperparameters, again.version, again.examples) == (
        copy.spec,
        copy.hyperparameters,
        copy.version,
        copy.examples,
    )
    assert same_tensors(again.tensors, copy.tensors)
    assert said == []


def test_a_state_that_was_loaded_goes_on_bit_for_bit() -> None:
    whole = a_state()
    for k in range(6):
        step(whole, a_batch(k))
    copy = a_copy(3)
    resumed = a_state()
    resumed.load(copy.tensors, copy.version, copy.examples)
    for k in range(3, 6):
        step(resumed, a_batch(k))
    assert same_tensors(resumed.tensors(), whole.tensors())
    assert Checkpoint.of(resumed, PROGRESS).sha256() == Checkpoint.of(whole, PROGRESS).sha256()


def test_a_copy_stays_as_it_was_while_the_state_learns_on() -> None:
    state = a_state()
    step(state, a_batch(0))
    copy = Checkpoint.of(state, PROGRESS)
    before = copy.sha256()
    step(state, a_batch(1))
    assert copy.sha256() == before


def test_the_digest_is_of_the_state_and_nothing_else() -> None:
    copy = a_copy()
    elsewhere = replace(PROGRESS, log="other", epoch=9, cut=99, entries=1)
    assert a_copy(progress=elsewhere).sha256() == copy.sha256()
    assert encode(copy, copy.sha256(), NUMERICS) == encode(a_copy(), copy.sha256(), NUMERICS)
    for name in (k for k, v in copy.tensors.items() if v.numel()):
        tensors = {k: v.clone() for k, v in copy.tensors.items()}
        tensors[name].view(-1)[:1].view(torch.uint8)[0] ^= 1
        assert replace(copy, tensors=tensors).sha256() != copy.sha256(), name
    assert replace(copy, version=4).sha256() != copy.sha256()
    faster = replace(copy.hyperparameters, lr=0.5)
    assert replace(copy, hyperparameters=faster).sha256() != copy.sha256()


def test_the_digest_knows_shapes() -> None:
    copy = a_copy()
    weight = copy.tensors["model.weight"]
    turned = copy.tensors | {"model.weight": weight.reshape(weight.shape[::-1])}
    assert replace(copy, tensors=turned).sha256() != copy.sha256()


def test_a_format_of_a_later_version_is_refused() -> None:
    copy = a_copy()
    raw = encode(copy, copy.sha256(), NUMERICS)
    digest = decode(raw)[1]["digest"].encode()
    later = raw.replace(digest, BLANK.encode(), 1).replace(rb"\"format\":1", rb"\"format\":2", 1)
    later = later.replace(BLANK.encode(), hashlib.sha256(later).hexdigest().encode(), 1)
    with pytest.raises(DamagedError, match="format 2 is not known"):
        decode(later)


def test_every_flipped_bit_is_found() -> None:
    copy = a_copy()
    raw = encode(copy, copy.sha256(), NUMERICS)
    header = 8 + int.from_bytes(raw[:8], "little")
    places = [*range(0, 8 * header), *range(8 * header, 8 * len(raw), 97)]
    for place in places:
        damaged = bytearray(raw)
        damaged[place // 8] ^= 1 << (place % 8)
        with pytest.raises(DamagedError):
            decode(bytes(damaged))


def test_a_file_cut_short_is_found() -> None:
    copy = a_copy()
    raw = encode(copy, copy.sha256(), NUMERICS)
    for length in range(0, len(raw), 53):
        with pytest.raises(DamagedError):
            decode(raw[:length])
    with pytest.raises(DamagedError):
        decode(raw + b"\0")


def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path: Path) -> None:
    checkpoints, _ = kept(tmp_path)
    older = checkpoints.write(a_copy(2, replace(PROGRESS, cut=16)))
    newest = checkpoints.write(a_copy(3))
    raw = bytearray(newest.path.read_bytes())
    raw[-1] ^= 1
    newest.path.write_bytes(raw)
    again, said = kept(tmp_path)
    copy = again.load()
    assert copy is not None
    assert copy.version == older.version == 2
    assert newest.path.name in said[0]
    assert "damaged" in said[0]


def test_without_a_good_one_nothing_is_loaded(tmp_path: Path) -> None:
    checkpoints, _ = kept(tmp_path)
    assert checkpoints.load() is None
    checkpoints.write(a_copy()).path.write_bytes(b"")
    with pytest.raises(DamagedError, match="backup"):
        kept(tmp_path)[0].load()


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path: Path) -> None:
    path = kept(tmp_path)[0].write(a_copy()).path
    path.rename(tmp_path / "away")
    path.mkdir()  # reading it is an error of the system's, for root too
    again, said = kept(tmp_path)
    for _ in range(2):
        with pytest.raises(UnreadableError, match=r"cannot be read: .* Is a directory"):
            again.load()
        assert again.has_news, "they are to be looked at again"
    [once] = said
    assert "cannot be read and is passed over" in once
    path.rmdir()
    (tmp_path / "away").rename(path)
    assert again.load() is not None


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """It may be a volume that comes back, with checkpoints that the log must reach back to."""
    checkpoints, _ = kept(tmp_path / "here")
    for cut in (1, 2):
        checkpoints.write(a_copy(cut, replace(PROGRESS, cut=cut)))
    checkpoints.directory.rename(tmp_path / "away")
    assert checkpoints.files() == []
    for cut in (2, 3):
        with pytest.raises(FileNotFoundError):
            checkpoints.write(a_copy(cut, replace(PROGRESS, cut=cut)))
    assert checkpoints.oldest() is None, "so that nothing is trimmed"
    (tmp_path / "away").rename(checkpoints.directory)
    checkpoints.write(a_copy(3, replace(PROGRESS, cut=3)))
    assert len(checkpoints.files()) == 3


def test_the_last_few_are_kept_and_never_overwritten(tmp_path: Path) -> None:
    checkpoints, _ = kept(tmp_path)
    infos = [checkpoints.write(a_copy(k, replace(PROGRESS, cut=k))) for k in range(1, KEPT + 3)]
    assert checkpoints.files() == [info.path for info in infos[-KEPT:]]
    oldest = checkpoints.oldest()
    assert oldest is not None
    assert oldest.cut == infos[-KEPT].progress.cut
    inode = infos[-1].path.stat().st_ino
    assert checkpoints.write(a_copy(KEPT + 2, infos[-1].progress)) == infos[-1]
    assert infos[-1].path.stat().st_ino == inode


def test_other_numerics_are_named(tmp_path: Path) -> None:
    kept(tmp_path)[0].write(a_copy())
    said: list[str] = []
    CheckpointStore(tmp_path, {"torch": "y"}, said.append).load()
    assert "torch x -> y" in said[0]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    blocked = tmp_path / "directory"
    blocked.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(blocked, b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["directory", "file"]
    assert path.read_bytes() == b"old"


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def replace(source: str, target: Path) -> None:
        rename(source, target)
        done.append("name")

    monkeypatch.setattr(checkpoint.os, "fsync", sync)
    monkeypatch.setattr(checkpoint.os, "replace", replace)
    write_atomically(tmp_path / "file", b"new")
    assert done == ["file", "name", "directory"]


def test_a_full_disk_leaves_no_scraps_and_says_so(tmp_path: Path) -> None:
    import resource
    import signal

    checkpoints, _ = kept(tmp_path)
    old = checkpoints.write(a_copy(1, replace(PROGRESS, cut=1)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.write(a_copy())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [p.name for p in tmp_path.iterdir()] == [old.path.name]
    assert os.listdir(tmp_path) == [checkpoints.files()[0].name]


def test_a_state_of_other_shapes_is_refused_whole() -> None:
    copy, state = a_copy(), a_state()
    before = {k: v.clone() for k, v in state.tensors().items()}
    for tensors in (
        {k: v for k, v in copy.tensors.items() if k != "model.bias"},
        copy.tensors | {"model.bias": torch.zeros(99)},
        copy.tensors | {"model.bias": copy.tensors["model.bias"].double()},
    ):
        with pytest.raises(ValueError, match=r"model\.bias"):
            state.load(tensors, 1, 1)
    assert same_tensors(state.tensors(), before)
    assert isinstance(State(state.spec, state.hyperparameters, CPU), State)


def test_a_state_of_other_drift_is_refused_whole() -> None:
    copy, state = a_copy(), a_state()
    before = {k: v.clone() for k, v in state.tensors().items()}
    with pytest.raises(ValueError, match="drift"):
        state.load(copy.tensors | {"drift.counts": torch.zeros(2)}, 1, 1)
    assert same_tensors(state.tensors(), before)


def test_scraps_of_killed_writers_are_cleared_away(tmp_path: Path) -> None:
    checkpoints, _ = kept(tmp_path)
    info = checkpoints.write(a_copy())
    (tmp_path / ".writing-x").write_bytes(b"half")
    checkpoints.clear_scraps()
    assert list(tmp_path.iterdir()) == [info.path]


def test_news_are_what_others_have_written(tmp_path: Path) -> None:
    mine, theirs = kept(tmp_path)[0], kept(tmp_path)[0]
    for k in range(1, KEPT + 3):
        mine.write(a_copy(k, replace(PROGRESS, cut=k)))
        assert not mine.has_news
    assert theirs.has_news
    theirs.load()
    theirs.write(a_copy(1, replace(PROGRESS, epoch=4, cut=99)))
    assert not theirs.has_news
    mine.write(a_copy(1, replace(PROGRESS, epoch=5, cut=100)))
    assert mine.has_news
