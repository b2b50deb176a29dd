"""The streams whose true probabilities are known: fixed by the seed, and true to their word."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from streams.made import churn, clicks
from streams.made.known import LABELS, Known
from streams.rows.rows import join
from streams.rowstream import RowStream

Cut = Callable[..., Iterator[Known]]
STREAMS = {"churn": (churn.known, churn.churn), "clicks": (clicks.known, clicks.clicks)}


def gathered(cut: Iterator[Known]) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    parts = list(cut)
    chunks = join([part.rows for part in parts]).chunks
    batches = [chunk.columns.append_column("label", chunk.labels) for chunk in chunks]
    table = pa.Table.from_batches(batches).combine_chunks()
    chances = np.concatenate([part.chances for part in parts])
    return table, chances, np.concatenate([part.answers for part in parts])


@pytest.mark.parametrize(("cut", "stream"), STREAMS.values(), ids=STREAMS)
def test_how_it_is_cut_does_not_change_it_and_its_seed_does(
    cut: Cut, stream: Callable[[int], RowStream]
) -> None:
    one, chances, answers = gathered(cut(1_234, 3, 1_234))
    other, others, _ = gathered(cut(7, 3, 1_234))
    assert one.num_rows == 1_234
    assert one.equals(other)
    assert np.array_equal(chances, others)
    assert (np.array(one["label"].to_pylist()) == np.where(answers, "yes", "no")).all()
    assert not one.equals(gathered(cut(100, 4, 1_234))[0])
    assert one.equals(gathered(cut(100, 3, 9_999))[0].slice(0, 1_234))
    rows = join(list(stream(1_234).batches(100, 3))).chunks
    assert pa.concat_arrays([chunk.labels for chunk in rows]).equals(one["label"].combine_chunks())
    assert stream(1_234).labels == LABELS


@pytest.mark.parametrize(("cut", "stream"), STREAMS.values(), ids=STREAMS)
def test_labels_follow_the_probabilities(cut: Cut, stream: object) -> None:
    """In each tenth of the probabilities, as many are positive as they say, within 4 deviations."""
    _, chances, answers = gathered(cut(5_000, 0, 40_000))
    for part in np.array_split(np.argsort(chances), 10):
        deviation = np.sqrt((chances[part] * (1 - chances[part])).sum())
        assert abs(answers[part].sum() - chances[part].sum()) < 4 * deviation


@pytest.mark.parametrize("seed", range(3))
def test_eight_percent_leave_before_and_after_the_reversal(seed: int) -> None:
    _, chances, _ = gathered(churn.known(1_000, seed, 40_000, reversal=20_000))
    assert chances[:20_000].mean() == pytest.approx(0.08, abs=0.004)
    assert chances[20_000:].mean() == pytest.approx(0.08, abs=0.004)


def test_the_reversal_changes_the_sign_of_every_effect_at_its_row() -> None:
    turned, whole = (gathered(churn.known(500, 1, 2_000, reversal=at)) for at in (777, None))
    columns = [name for name in turned[0].column_names if name != "label"]
    assert turned[0].select(columns).equals(whole[0].select(columns))
    assert np.array_equal(turned[1][:777], whole[1][:777])
    odds, other = (np.log(p / (1 - p)) for p in (turned[1][777:], whole[1][777:]))
    middle = (odds + other) / 2
    assert np.ptp(middle) < 1e-9
    assert odds.std() == pytest.approx(churn.RELATION, rel=0.1)
    assert [shift.example for shift in churn.churn(2_000, reversal=777).shifts] == [0, 777]


def test_churn_has_eleven_columns_and_each_decides() -> None:
    table, chances, _ = gathered(churn.known(5_000, 0, 20_000))
    odds = np.log(chances / (1 - chances))
    names = [name for name in table.column_names if name != "label"]
    assert len(names) == 11
    for name in names:
        values = table[name].to_numpy(zero_copy_only=False)
        if values.dtype == object:
            means = [odds[values == value].mean() for value in np.unique(values)]
            assert np.ptp(means) > 0.1
        else:
            assert abs(np.corrcoef(values, odds)[0, 1]) > 0.1


def test_a_truth_of_the_season_before_is_worse_on_clicks() -> None:
    """The effects drift: the same rows have other chances with the effects of another time."""
    known = partial(clicks.known, 20_000, 0, 60_000)
    first, second, third = (part.chances for part in known())
    assert 0.05 < first.mean() < 0.4
    effects = clicks._lasting(0)
    early, late = (clicks._ads(0, season, effects) for season in (0, 1))
    assert (early == late)[::2].all()
    assert not (early == late)[1::2].any()
    assert second.std() > 0.05
    assert third.std() > 0.05
