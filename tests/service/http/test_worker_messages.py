"""The lines between the learner's process and a worker bring everything across."""

import dataclasses
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from service.http.workers.messages import (
    of_counts,
    of_settings,
    of_status,
    to_counts,
    to_settings,
    to_upstream,
)
from service.log.position import EntryId, Position, Progress
from service.monitoring.status import Condition
from service.settings import Settings
from service.trainer.apart.follower import Follower
from tests.support.states import a_state

SETTINGS = Settings(model="logistic", optimizer="funnel", features=6, classes=3)


def test_a_worker_has_the_settings_that_are_set_with_their_secrets(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    own = Settings(
        data_dir=tmp_path, api_key_file=key, hidden=(3, 4), features=5, allowed_hosts=("a", "b"),
        label_timeout="30m:no",
    )  # fmt: skip
    line = of_settings(own, port=81, redis_url="unix:///log")
    assert line.count(b"\n") == 1
    found = to_settings(line)
    assert found.api_key.get_secret_value() == "secret"
    assert (found.port, found.redis_url.get_secret_value()) == (81, "unix:///log")
    changed = {"port", "redis_url", "api_key_file"}
    for name in set(Settings.model_fields) - changed:
        assert getattr(found, name) == getattr(own, name), name
    assert found.model_fields_set - changed == own.model_fields_set - changed, (
        "what is not set stays open"
    )


@given(
    st.sampled_from(list(Condition)),
    st.text(),
    st.builds(EntryId, st.integers(0, 1 << 63), st.integers(0, 1 << 63)),
    st.none() | st.integers(1, 1000),
)
def test_the_learners_status_comes_across(
    condition: Condition, reason: str, entry: EntryId, taken: int | None
) -> None:
    status = dataclasses.replace(
        Follower(a_state(), [], SETTINGS, 1.0).status,
        condition=condition,
        reason=reason,
        progress=Progress(position=Position(entry, taken), entries=7),
        mean_entry=2.5,
    )
    line = of_status(status)
    assert line.count(b"\n") == 1
    assert to_upstream(line) == (condition, reason, status.learned)


def test_counts_come_across() -> None:
    counts = [("funnel_asked_total", {}, 3.0), ("a_bucket", {"le": "+Inf", "code": "200"}, 1.0)]
    assert to_counts(of_counts(counts)) == counts
