"""The option ``--delay`` is read strictly, and draws the same times for the same seed."""

import math

import numpy as np
import pytest

from streams.delays.delay import Delay, DelayError, Wait


@pytest.mark.parametrize(
    ("text", "others", "by_label", "in_seconds"),
    [
        ("500", Wait(500.0), {}, False),
        ("0", Wait(), {}, False),
        ("30s", Wait(30.0), {}, True),
        ("1.5h", Wait(5_400.0), {}, True),
        ("250ms", Wait(0.25), {}, True),
        ("exp:2m", Wait(120.0, True), {}, True),
        ("exp:500", Wait(500.0, True), {}, False),
        ("never", Wait(math.inf), {}, False),
        ("yes=5,no=never", Wait(), {"yes": Wait(5.0), "no": Wait(math.inf)}, False),
        ("yes=exp:5,9", Wait(9.0), {"yes": Wait(5.0, True)}, False),
        ("a=b=1s,2s", Wait(2.0), {"a=b": Wait(1.0)}, True),
    ],
)
def test_a_delay_is_read(
    text: str, others: Wait, by_label: dict[str, Wait], in_seconds: bool
) -> None:
    found = Delay.parse(text)
    assert (found.others, found.by_label, found.in_seconds) == (others, by_label, in_seconds)
    assert str(found) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no delay"),
        ("soon", "is no delay"),
        ("-5", "is no delay"),
        ("1e3", "is no delay"),
        ("exp:never", "is no delay"),
        ("5 s", "is no delay"),
        ("yes=", "is no delay"),
        ("=5", "a label is missing"),
        ("5,6", "second delay for the same labels"),
        ("a=5,a=6", "second delay for the same labels"),
        ("a=5,6s", "mixes examples and times"),
        ("٣", "is no delay"),
    ],
)
def test_what_is_no_delay_is_refused_in_words(text: str, why: str) -> None:
    with pytest.raises(DelayError, match=why):
        Delay.parse(text)


def test_a_drawn_delay_has_its_mean_and_each_label_its_own() -> None:
    delay = Delay.parse("yes=exp:200,no=never,7")
    times = delay.draws(3).next(["yes"] * 20_000 + ["no", "maybe"])
    assert times[:20_000].mean() == pytest.approx(200, rel=0.03)
    assert np.median(times[:20_000]) == pytest.approx(200 * math.log(2), rel=0.03)
    assert times[20_000:].tolist() == [math.inf, 7.0]


def test_how_a_stream_is_cut_changes_no_time() -> None:
    labels = ["yes", "no", "other"] * 50
    delay = Delay.parse("yes=exp:20,no=3,exp:1")
    whole, draws = delay.draws(1).next(labels), delay.draws(1)
    parts = np.concatenate([draws.next(labels[:40]), draws.next(labels[40:])])
    assert whole.tolist() == parts.tolist()
    assert whole.tolist() != delay.draws(2).next(labels).tolist()


def test_a_label_that_does_not_occur_is_named() -> None:
    Delay.parse("yes=5").check_labels(["yes", "no"])
    with pytest.raises(DelayError, match="'maybe', and there are yes, no"):
        Delay.parse("maybe=5").check_labels(["yes", "no"])
