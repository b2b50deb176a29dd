"""The follower answers with the newest state that is published, and never goes back."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.fold.state import State
from service.log.backlog import Learned
from service.log.errors import Stopped
from service.log.position import BEGINNING, Progress
from service.monitoring.status import Condition, Role, Upstream
from service.settings import Settings
from service.trainer.apart.follower import FOLLOWS, Follower
from service.trainer.apart.publisher import Publisher
from service.trainer.checkpoint import Checkpoint, numerics
from service.trainer.choice import AnotherModelError
from service.trainer.disk import PassingDisk
from service.trainer.replica import Replica
from service.trainer.store import CheckpointStore, cut_of
from service.trainer.worker import Worker
from tests.support.clock import StillClock
from tests.support.harness import wait_for
from tests.support.states import CPU, a_batch, a_state, bits, step

SETTINGS = Settings(model="logistic", optimizer="funnel", features=6, classes=3)


def a_store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, numerics(CPU), lambda _: None, PassingDisk())


def learned(state: State, cut: int, log: str = "log") -> Checkpoint:
    """Learn another batch, and return the state with a cut of this number."""
    step(state, a_batch(cut))
    return Checkpoint.of(state, Progress(log, 1, cut, BEGINNING))


@pytest.fixture
def places(tmp_path: Path) -> tuple[CheckpointStore, CheckpointStore]:
    """Where a trainer publishes, and where it keeps its checkpoints."""
    return a_store(tmp_path / "model/snapshots"), a_store(tmp_path / "model")


@pytest.fixture
def follower(places: tuple[CheckpointStore, CheckpointStore]) -> Iterator[Follower]:
    stores = [a_store(place.directory) for place in places]
    made = Follower(a_state(), stores, SETTINGS, 0.01)
    yield made
    made.stop(5)


def weights(follower: Follower) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in follower.snapshot.weights.items()}


def test_a_follower_has_the_bits_of_the_newest_state_wherever_it_is(
    places: tuple[CheckpointStore, CheckpointStore], follower: Follower
) -> None:
    published, kept = places
    state = a_state()
    follower.prepare()
    assert (follower.status.version, follower.knows_schema) == (0, False)
    for cut, place in enumerate((kept, published, published, kept), 1):
        place.write(learned(state, cut))
        follower.prepare()
        assert follower.snapshot.version == follower.status.version == cut
        assert weights(follower) == {k: bits(v) for k, v in state.served.frozen().items()}
    status = follower.status
    assert (status.role, status.condition) == (Role.PREDICTOR, Condition.FOLLOWING)
    assert status.reason == FOLLOWS


def test_a_follower_never_goes_back_in_one_log(
    places: tuple[CheckpointStore, CheckpointStore], follower: Follower
) -> None:
    published, _ = places
    state = a_state()
    earlier, later = learned(state, 3), learned(state, 9)
    published.write(later)
    follower.prepare()
    for path in published.files():
        path.unlink()
    published.write(earlier)
    follower.prepare()
    assert follower.snapshot.version == 2, "the state of cut 9 is of two batches"
    published.write(replace(learned(a_state(), 4), progress=Progress("another", 1, 4, BEGINNING)))
    follower.prepare()
    assert follower.snapshot.version == 1, "another log has another history"


def test_a_damaged_state_is_named_and_the_next_good_one_is_taken(
    places: tuple[CheckpointStore, CheckpointStore],
    follower: Follower,
    caplog: pytest.LogCaptureFixture,
) -> None:
    published, _ = places
    state = a_state()
    published.write(learned(state, 1))
    follower.start()
    damaged = published.write(learned(state, 2)).path
    raw = bytearray(damaged.read_bytes())
    raw[-1] ^= 1
    damaged.write_bytes(raw)
    wait_for(lambda: "is damaged" in follower.status.reason)
    assert follower.status.condition == Condition.FOLLOWING
    assert follower.snapshot.version <= 2
    published.write(learned(state, 3))
    wait_for(lambda: follower.snapshot.version == 3)
    wait_for(lambda: follower.status.reason == FOLLOWS)
    assert caplog.text.count("going on with what was read before") == 1


def test_a_place_that_is_away_is_an_age_and_not_an_end(
    places: tuple[CheckpointStore, CheckpointStore], follower: Follower
) -> None:
    published, kept = places
    published.write(learned(a_state(), 1))
    follower.start()
    assert follower.status.followed is not None
    folder = kept.directory
    folder.rename(folder.with_name("away"))
    folder.write_text("no folder")
    wait_for(lambda: "cannot be read" in follower.status.reason)
    before = follower.status.followed
    assert before is not None
    assert follower.snapshot.version == 1
    folder.unlink()
    folder.with_name("away").rename(folder)
    wait_for(lambda: (after := follower.status.followed) is not None and after > before)
    wait_for(lambda: follower.status.reason == FOLLOWS)


def test_a_state_of_another_model_is_refused_or_taken_as_the_settings_allow(
    places: tuple[CheckpointStore, CheckpointStore],
) -> None:
    published, _ = places
    published.write(learned(a_state("mlp"), 1))
    store = a_store(published.directory)
    open_settings = Settings(model="logistic", optimizer="funnel")
    with pytest.raises(AnotherModelError, match="is of another model") as caught:
        Follower(a_state(), [store], open_settings, 0.01).prepare()
    assert caught.value.spec is not None
    assert caught.value.spec.model == "mlp"


def test_a_follower_that_takes_examples_shows_how_the_learner_is(
    places: tuple[CheckpointStore, CheckpointStore],
) -> None:
    published, _ = places
    upstream = Upstream(Condition.PAUSED, "paused by test", Learned())
    own = Follower(
        a_state(), [a_store(published.directory)], SETTINGS, 0.01, upstream=lambda: upstream
    )
    assert (own.status.condition, own.status.reason) == (Condition.PAUSED, "paused by test")


def test_the_trainers_work_is_refused_with_the_reason(follower: Follower) -> None:
    with pytest.raises(Stopped, match="role predict"):
        follower.checkpoint().result()


def test_a_publisher_writes_what_has_changed_once_it_is_time(tmp_path: Path) -> None:
    clock, store = StillClock(), a_store(tmp_path / "snapshots")
    publisher = Publisher(store, Worker("test"), 10.0, clock)
    replica = Replica(a_state(), lambda *_: None, clock)

    def publish(cut: int) -> None:
        replica.follow(learned(replica.state, cut), "memory")
        publisher.tend(replica)

    reader = a_store(store.directory)
    publish(1)
    wait_for(lambda: len(reader.files()) == 1)
    assert publisher.due_in() == 10.0
    publish(2)
    publisher.tend(replica)
    clock.now += 10
    publisher.tend(replica)
    wait_for(lambda: len(reader.files()) == 2)
    clock.now += 10
    publisher.tend(replica)
    newest = reader.newest()
    assert newest is not None
    assert (newest.progress.cut, newest.version) == (2, 2)
    assert len(reader.files()) == 2, "the state has not changed"
    publisher.end()


def test_snapshots_of_another_log_are_gone_once_a_trainer_publishes(
    places: tuple[CheckpointStore, CheckpointStore], follower: Follower
) -> None:
    published, _ = places
    published.write(learned(a_state(), 90, "flushed"))
    follower.prepare()
    assert follower.snapshot.version == 1
    clock = StillClock()
    publisher = Publisher(a_store(published.directory), Worker("test"), 10.0, clock)
    replica = Replica(a_state(), lambda *_: None, clock)
    for cut in (1, 2):
        replica.follow(learned(replica.state, cut), "memory")
    publisher.tend(replica)
    wait_for(lambda: [cut_of(path.name) for path in published.files()] == [2])
    follower.prepare()
    assert follower.snapshot.version == 2
    publisher.end()


def test_a_folder_that_somebody_removes_is_made_again_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, store = StillClock(), a_store(tmp_path / "model/snapshots")
    publisher = Publisher(store, Worker("test"), 1.0, clock)
    replica = Replica(a_state(), lambda *_: None, clock)
    replica.follow(learned(replica.state, 1), "memory")
    publisher.tend(replica)
    wait_for(lambda: len(store.files()) == 1)
    shutil.rmtree(store.directory)
    replica.follow(learned(replica.state, 2), "memory")

    def publishes() -> bool:
        clock.now += 1
        publisher.tend(replica)
        return "published again" in caplog.text

    caplog.set_level("INFO")
    wait_for(publishes)
    assert caplog.text.count("could not be published") == 1
    assert len(store.files()) == 1
    publisher.end()
