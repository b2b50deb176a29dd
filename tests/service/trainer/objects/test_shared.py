"""The checkpoints of a model in object storage: kept, found and named while requests get lost."""

import hashlib
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from service.log.errors import FencedError
from service.trainer.checkpoint import Checkpoint
from service.trainer.objects.bucket import Bucket
from service.trainer.objects.latest import Latest
from service.trainer.objects.shared import SharedStore
from service.trainer.store import KEPT, UnreadableError
from tests.support.checkpoints import NUMERICS, PROGRESS, a_copy, kept
from tests.support.objects import FaultyBucket, in_memory


def a_store(bucket: Bucket, by: str = "", said: list[str] | None = None) -> SharedStore:
    return SharedStore(bucket, "m", NUMERICS, (said or []).append, by=by)


@cache
def a_step() -> Checkpoint:
    return a_copy(1)


def at(cut: int, epoch: int = 3) -> Checkpoint:
    return replace(a_step(), progress=replace(PROGRESS, epoch=epoch, cut=cut))


def latest(bucket: Bucket) -> Latest:
    found = bucket.read("m/latest.json")
    assert found is not None
    return Latest.from_json(found.raw)


def test_a_checkpoint_is_named_with_its_size_and_digest_and_loaded_elsewhere() -> None:
    bucket = in_memory()
    learner, standby = a_store(bucket, "learner"), a_store(bucket)
    assert standby.load() is None
    assert not standby.has_news
    learner.claim(3)
    assert not standby.has_news, "a claim names no other checkpoint"
    info = learner.write(at(17))
    assert standby.has_news
    copy = standby.load()
    assert copy is not None
    assert (copy.progress, copy.sha256()) == (at(17).progress, info.sha256)
    assert not standby.has_news
    found = bucket.read(f"m/checkpoints/{info.path.name}")
    assert found is not None
    digest = hashlib.sha256(found.raw).hexdigest()
    name = "checkpoint-00000003-00000000000017.safetensors"
    assert latest(bucket) == Latest(3, "learner", 1, 17, name, digest, len(found.raw))


def test_the_last_few_are_kept_and_the_log_is_needed_from_the_oldest_on() -> None:
    bucket = in_memory()
    store = a_store(bucket)
    store.claim(3)
    for cut in range(1, KEPT + 3):
        store.write(at(cut))
    assert len(bucket.names("m/checkpoints")) == KEPT
    oldest = store.oldest()
    assert oldest is not None
    assert oldest.cut == 3
    again = a_store(bucket)
    again.load()
    assert again.oldest() == oldest


def test_what_a_fenced_trainer_writes_is_not_named_and_nobody_loads_it() -> None:
    bucket = in_memory()
    old, new = a_store(bucket), a_store(bucket)
    old.claim(3)
    old.write(at(1))
    new.load()
    new.claim(4)
    with pytest.raises(FencedError, match="claimed in epoch 4; mine is 3"):
        old.write(at(2))
    assert latest(bucket).cut == 1
    copy = a_store(bucket).load()
    assert copy is not None
    assert copy.progress.cut == 1
    assert not new.has_news


def test_a_trainer_knows_the_epoch_that_was_claimed_last() -> None:
    bucket = in_memory()
    a_store(bucket).claim(7)
    other = a_store(bucket)
    other.load()
    assert other.epoch == 7


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_a_checkpoint_whose_answer_is_lost_is_written(operation: str) -> None:
    bucket, losses = in_memory(), [operation]

    def fault(asked: str) -> str:
        if asked in losses:
            losses.remove(asked)
            return "unanswered"
        return ""

    a_store(bucket).claim(2)
    store = a_store(FaultyBucket(bucket, fault))
    store.load()
    store.claim(3)
    losses[:] = [operation]
    assert store.write(at(1)).progress.cut == 1
    assert losses == []
    assert latest(bucket).cut == 1


def test_while_the_store_is_away_checkpoints_fail_and_then_go_on() -> None:
    bucket, away = in_memory(), [False]
    store = a_store(FaultyBucket(bucket, lambda _: "lost" if away[0] else ""))
    store.claim(3)
    store.write(at(1))
    away[0] = True
    for cut in (2, 3):
        with pytest.raises(OSError, match="lost"):
            store.write(at(cut))
    with pytest.raises(UnreadableError, match="cannot be read: the request was lost"):
        _ = store.has_news
    with pytest.raises(UnreadableError, match="cannot be claimed: the request was lost"):
        store.claim(4)
    away[0] = False
    store.write(at(4))
    assert latest(bucket).cut == 4
    copy = a_store(bucket).load()
    assert copy is not None
    assert copy.progress.cut == 4


def test_a_checkpoint_that_could_not_be_named_is_removed_by_the_next() -> None:
    bucket, faults = in_memory(), ["", "lost"]

    def fault(asked: str) -> str:
        return faults.pop(0) if asked == "replace" and faults else ""

    store = a_store(FaultyBucket(bucket, fault))
    store.claim(3)
    store.write(at(1))
    with pytest.raises(OSError, match="lost"):
        store.write(at(2))
    assert len(bucket.names("m/checkpoints")) == 2
    store.write(at(3))
    assert [path.name[-14 - len(".safetensors") :][:14] for path in store.files()] == [
        f"{cut:014d}" for cut in (1, 3)
    ]
    assert store.oldest() is not None, "so that the log is trimmed"


def test_a_list_without_the_newest_hides_no_checkpoint() -> None:
    bucket = in_memory()
    learner = a_store(bucket)
    learner.claim(3)
    stale = FaultyBucket(bucket, lambda asked: "stale" if asked == "names" else "")
    standby = a_store(stale)
    for cut in (1, 2):
        learner.write(at(cut))
        assert standby.has_news
        copy = standby.load()
        assert copy is not None
        assert copy.progress.cut == cut


def test_a_damaged_object_is_skipped_and_written_again() -> None:
    bucket, said = in_memory(), list[str]()
    store = a_store(bucket)
    store.claim(3)
    infos = [store.write(at(cut)) for cut in (1, 2)]
    name = f"m/checkpoints/{infos[-1].path.name}"
    bucket.remove(name)
    bucket.create(name, b"damaged")
    other = SharedStore(bucket, "m", NUMERICS, said.append)
    copy = other.load()
    assert copy is not None
    assert copy.progress.cut == 1
    assert "is damaged and skipped" in said[0]
    other.claim(4)
    repaired = SharedStore(bucket, "m", NUMERICS, said.append)
    repaired.load()
    repaired.claim(5)
    repaired.write(at(2))
    found = bucket.read(name)
    assert found is not None
    assert found.raw != b"damaged"


def test_checkpoints_of_a_folder_are_taken_over_by_an_empty_store(tmp_path: Path) -> None:
    former, _ = kept(tmp_path)
    former.write(at(5))
    bucket = in_memory()
    store = SharedStore(bucket, "m", NUMERICS, print, former)
    copy = store.load()
    assert copy is not None
    assert copy.progress.cut == 5
    assert store.oldest() is None, "so that nothing is trimmed before the store has one"
    store.claim(4)
    store.write(at(6, epoch=4))
    other = SharedStore(bucket, "m", NUMERICS, print, former)
    copy = other.load()
    assert copy is not None
    assert copy.progress.cut == 6
    assert len(former.files()) == 1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_store_does_the_newest_that_is_named_can_be_loaded(seed: int) -> None:
    """Two trainers take turns, and requests get lost: what is named is whole, cuts never go back,
    and what a trainer was told it has written is loaded, or something later."""
    rng, bucket = random.Random(seed), in_memory()
    faults = ("", "", "", "", "", "lost", "unanswered", "late", "stale")

    def fault(asked: str) -> str:
        found = rng.choice(faults)
        return "" if found == "stale" and asked != "names" else found

    stores = [a_store(FaultyBucket(bucket, fault), str(k)) for k in range(2)]
    epoch, cut, told, newest = 0, 0, 0, 0
    leader, term = 0, 0
    for _ in range(40):
        cut += 1
        if not term or rng.random() < 0.1:
            leader, epoch, term = rng.randrange(2), epoch + 1, 0
            try:
                stores[leader].claim(epoch)
            except UnreadableError:
                continue
            term = epoch
        try:
            stores[leader].write(at(cut, term))
        except FencedError:
            term = 0
        except OSError:
            pass
        else:
            told = cut
        if "m/latest.json" in bucket.names("m"):
            named = latest(bucket)
            assert newest <= named.cut
            newest = named.cut
        if told and rng.random() < 0.2:
            copy = a_store(bucket, said=(said := [])).load()
            assert copy is not None
            assert copy.progress.cut == newest >= told
            assert said == []
