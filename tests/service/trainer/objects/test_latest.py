"""Only one trainer at a time names the newest checkpoint, whatever happens to its requests."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.log.errors import FencedError
from service.trainer.objects.bucket import Bucket, Found, Tag
from service.trainer.objects.latest import Latest, Pointer
from tests.support.objects import FaultyBucket, in_memory

NAME = "m/latest.json"


def fine(_: str) -> str:
    return ""


def named(cut: int) -> Callable[[int, str], Latest]:
    return lambda epoch, by: Latest(epoch, by, cut, cut, f"{epoch:04d}-{cut:04d}", "0", 1)


def content(bucket: Bucket) -> Latest:
    found = bucket.read(NAME)
    assert found is not None
    return Latest.from_json(found.raw)


def test_a_later_trainer_fences_off_an_earlier_one_before_it_writes() -> None:
    bucket = in_memory()
    old, new = Pointer(bucket, NAME, "old"), Pointer(bucket, NAME, "new")
    old.claim(1)
    old.move(named(10), 1)
    new.claim(2)
    assert content(bucket) == Latest(2, "new", 10, 10, "0001-0010", "0", 1)
    with pytest.raises(FencedError, match="epoch 2; mine is 1"):
        old.move(named(20), 1)
    with pytest.raises(FencedError, match="epoch 2; mine is 1"):
        old.claim(1)
    new.move(named(15), 2)
    assert content(bucket).cut == 15


def test_two_trainers_of_one_epoch_do_not_both_claim() -> None:
    """As if the log's server had lost an epoch that it had given out."""
    bucket = in_memory()
    one, other = Pointer(bucket, NAME, "one"), Pointer(bucket, NAME, "other")
    one.claim(5)
    with pytest.raises(FencedError, match="claimed in epoch 5; mine is 5"):
        other.claim(5)
    one.move(named(3), 5)
    with pytest.raises(FencedError):
        other.move(named(4), 5)


def test_a_checkpoint_never_goes_back() -> None:
    bucket = in_memory()
    pointer = Pointer(bucket, NAME, "one")
    pointer.claim(1)
    pointer.move(named(10), 1)
    with pytest.raises(FencedError, match="names 0001-0010"):
        pointer.move(named(9), 1)


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_a_change_whose_answer_is_lost_counts_once_it_is_read_back(operation: str) -> None:
    bucket = in_memory()
    losses = [operation]

    def fault(asked: str) -> str:
        if asked in losses:
            losses.remove(asked)
            return "unanswered"
        return ""

    pointer = Pointer(FaultyBucket(bucket, fault), NAME, "one")
    pointer.claim(1)
    pointer.move(named(1), 1)
    pointer.move(named(2), 1)
    assert losses == []
    assert content(bucket).cut == 2


def test_a_trainer_goes_on_after_a_change_that_came_late() -> None:
    bucket = in_memory()
    faults = ["", "late"]

    def fault(asked: str) -> str:
        return faults.pop(0) if asked == "replace" and faults else ""

    pointer = Pointer(FaultyBucket(bucket, fault), NAME, "one")
    pointer.claim(1)
    pointer.move(named(1), 1)
    with pytest.raises(OSError, match="lost"):
        pointer.move(named(2), 1)
    pointer.move(named(3), 1)
    assert content(bucket).cut == 3


def test_what_has_not_changed_is_not_read_again() -> None:
    reads: list[Tag | None] = []

    class Counting(FaultyBucket):
        def read(self, name: str, known: Tag | None = None) -> Found | None:
            found = super().read(name, known)
            reads.append(found.tag if found else None)
            return found

    bucket = in_memory()
    leader, reader = Pointer(bucket, NAME, "one"), Pointer(Counting(bucket, fine), NAME, "two")
    leader.claim(1)
    for _ in range(3):
        found = reader.look()
        assert found is not None
        assert found.epoch == 1
    assert [tag is None for tag in reads] == [False, True, True]


def test_what_is_damaged_is_named() -> None:
    bucket = in_memory()
    bucket.create(NAME, b"{}")
    with pytest.raises(OSError, match=r"latest.json is damaged .*: remove it"):
        Pointer(bucket, NAME).look()


class Watched(FaultyBucket):
    """Objects whose changes are noted, while others act between the requests of one trainer."""

    def __init__(self, bucket: Bucket, fault: Callable[[str], str], meanwhile: Callable[[], None]):
        super().__init__(bucket, fault)
        self._meanwhile = meanwhile

    def replace(self, name: str, raw: bytes, known: Tag) -> Tag:
        self._meanwhile()
        return super().replace(name, raw, known)

    def create(self, name: str, raw: bytes) -> Tag:
        self._meanwhile()
        return super().create(name, raw)


class Noting(FaultyBucket):
    """Objects of which every version is kept."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket, fine)
        self.versions: list[Latest] = []

    def replace(self, name: str, raw: bytes, known: Tag) -> Tag:
        tag = super().replace(name, raw, known)
        self.versions.append(Latest.from_json(raw))
        return tag

    def create(self, name: str, raw: bytes) -> Tag:
        tag = super().create(name, raw)
        self.versions.append(Latest.from_json(raw))
        return tag


FAULTS = st.sampled_from(["", "", "", "", "lost", "unanswered", "late"])


@given(st.data())
def test_two_that_both_believe_that_they_lead_never_both_name_a_checkpoint(
    data: st.DataObject,
) -> None:
    noting = Noting(in_memory())
    epochs, claimed, cuts = [0], [0, 0, 0], [0]
    depth = [0]

    def fault(_: str) -> str:
        return data.draw(FAULTS)

    def act(who: int) -> None:
        """Claim with a new epoch, or name a checkpoint in the epoch of the last claim."""
        pointer = pointers[who]
        try:
            if not claimed[who] or data.draw(st.booleans()):
                epochs[0] += 1
                epoch, claimed[who] = epochs[0], 0
                pointer.claim(epoch)
                claimed[who] = epoch
                confirmed.append((len(noting.versions), epoch))
            else:
                cuts[0] += 1
                pointer.move(named(cuts[0]), claimed[who])
                assert noting.versions[-1].by == str(who) or depth[0]
        except FencedError:
            assert max(v.epoch for v in noting.versions) >= claimed[who] > 0 or not claimed[who]
            claimed[who] = 0
        except OSError:
            return

    def meanwhile() -> None:
        if depth[0] == 0 and data.draw(st.integers(0, 3)) == 0:
            depth[0] += 1
            act(data.draw(st.integers(0, 2)))
            depth[0] -= 1

    pointers = [Pointer(Watched(noting, fault, meanwhile), NAME, str(k)) for k in range(3)]
    confirmed: list[tuple[int, int]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        act(data.draw(st.integers(0, 2)))
    versions = noting.versions
    assert [v.epoch for v in versions] == sorted(v.epoch for v in versions)
    assert len({(v.epoch, v.by) for v in versions}) == len({v.epoch for v in versions})
    assert [v.name for v in versions] == sorted(v.name for v in versions)
    for count, epoch in confirmed:
        assert all(v.epoch >= epoch for v in versions[count:])
