"""The store: a checkpoint is there whole or not at all, and the newest good one is loaded."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from service.trainer import disk
from service.trainer.checkpoint import DamagedError
from service.trainer.disk import SystemDisk
from service.trainer.store import KEPT, CheckpointStore, UnreadableError
from tests.support.checkpoints import PROGRESS, a_copy, kept
from tests.support.states import same_tensors


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


def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(tmp_path: Path) -> None:
    path = kept(tmp_path)[0].write(a_copy()).path
    path.rename(tmp_path / "away")
    path.mkdir()  # reading it is an error of the system's, for root too
    again, said = kept(tmp_path)
    for _ in range(2):
        with pytest.raises(UnreadableError, match=r"cannot be read: .* Is a directory"):
            again.load()
        assert again.has_news, "they are to be looked at again"
    [once] = said
    assert "cannot be read and is skipped" in once
    path.rmdir()
    (tmp_path / "away").rename(path)
    assert again.load() is not None


def test_a_missing_folder_is_not_created_again(tmp_path: Path) -> None:
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


def test_an_old_trainer_that_writes_late_reports_what_it_wrote(tmp_path: Path) -> None:
    old, new = kept(tmp_path)[0], kept(tmp_path)[0]
    for cut in range(1, KEPT + 1):
        new.write(a_copy(cut, replace(PROGRESS, epoch=4, cut=cut)))
    late = old.write(a_copy(1, replace(PROGRESS, epoch=3, cut=1)))
    assert late.progress.epoch == 3
    assert late.path not in new.files()
    assert len(new.files()) == KEPT


def test_a_checkpoint_that_another_process_removes_is_removed(tmp_path: Path) -> None:
    class Racing(SystemDisk):
        def remove(self, path: Path) -> None:
            path.unlink(missing_ok=True)  # the other process is a moment faster
            super().remove(path)

    checkpoints = CheckpointStore(tmp_path, {}, print, Racing())
    for cut in range(1, KEPT + 2):
        checkpoints.write(a_copy(cut, replace(PROGRESS, cut=cut)))
    assert len(checkpoints.files()) == KEPT


def test_other_numerics_are_named(tmp_path: Path) -> None:
    kept(tmp_path)[0].write(a_copy())
    said: list[str] = []
    CheckpointStore(tmp_path, {"torch": "y"}, said.append).load()
    assert "torch x -> y" in said[0]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    SystemDisk().put(path, b"old")
    blocked = tmp_path / "directory"
    blocked.mkdir()
    with pytest.raises(OSError, match="directory"):
        SystemDisk().put(blocked, b"new")
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

    monkeypatch.setattr(disk.os, "fsync", sync)
    monkeypatch.setattr(disk.os, "replace", replace)
    SystemDisk().put(tmp_path / "file", b"new")
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


def test_scraps_of_killed_writers_are_cleared_away(tmp_path: Path) -> None:
    checkpoints, _ = kept(tmp_path)
    info = checkpoints.write(a_copy())
    (tmp_path / ".writing-x").write_bytes(b"half")
    checkpoints.clear_scraps()
    assert list(tmp_path.iterdir()) == [info.path]


def test_checkpoints_of_other_processes_are_news(tmp_path: Path) -> None:
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
