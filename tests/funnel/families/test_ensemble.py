"""Trees, neighbours and frequencies together: exact, resumable, immutable once frozen."""

import math

import pytest
import torch

from funnel.families.ensemble import Ensemble, Layout
from funnel.families.interface import MOST_LAGS, Examples, Given, Scaling
from funnel.families.outcomes import Classes

WIDTH, CLASSES = 5, 3


NUMBERS = Layout(0, WIDTH, 0, WIDTH)


def an_ensemble(layout: Layout = NUMBERS) -> Ensemble:
    return Ensemble(layout, Classes(torch.ones(CLASSES, dtype=torch.bool)))


def coded(has_ranks: bool = True) -> Ensemble:
    """Return an ensemble of two codes of categories and of numbers."""
    layout = Layout(2, WIDTH - 2, 2, WIDTH - 2, compares_codes=True)
    return Ensemble(layout, Classes(torch.ones(CLASSES, dtype=torch.bool)), has_ranks)


KINDS = {"numbers": an_ensemble, "codes": coded, "codes and integers": lambda: coded(False)}


def a_batch(step: int, n: int = 100, turned: bool = False, codes: int = 0) -> Examples:
    raw = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(step))
    raw[:, :codes].round_()
    labels = (raw[:, 0] > 0.2).long() + ((raw[:, 1] * raw[:, 2]) > 0).long()
    scaling = Scaling(torch.zeros(WIDTH), torch.ones(WIDTH))
    return Examples(Given(raw, scaling), 2 - labels if turned else labels, torch.ones(n), (0, step))


def taught(ensemble: Ensemble, steps: range, turned: bool = False) -> list[float]:
    """Let it learn; return the accuracy of the trees of the long window, by batch."""
    found = []
    for step in steps:
        batch = a_batch(step, turned=turned, codes=ensemble.layout.codes)
        answered = ensemble.answers(batch.given)
        found.append(float((answered.answers[1].argmax(dim=1) == batch.labels).float().mean()))
        ensemble.learn(batch, answered)
    return found


def copies(ensemble: Ensemble) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in ensemble.tensors().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_equal_batches_give_equal_bits(kind: str) -> None:
    one, other = KINDS[kind](), KINDS[kind]()
    taught(one, range(60))
    taught(other, range(60))
    same(copies(one), copies(other))


@pytest.mark.parametrize(
    ("kind", "at"),
    [("numbers", 1), ("numbers", 7), *((kind, at) for kind in KINDS for at in (45, 95))],
)
def test_it_resumes_bit_for_bit_from_copies_of_its_tensors(kind: str, at: int) -> None:
    one, other = KINDS[kind](), KINDS[kind]()
    taught(one, range(at))
    for name, tensor in one.tensors().items():
        other.tensors()[name].copy_(tensor)
    other.loaded()
    taught(one, range(at, at + 8))
    taught(other, range(at, at + 8))
    same(copies(one), copies(other))
    given = a_batch(999, codes=one.layout.codes).given
    assert torch.equal(one.frozen().answers(given).answers, other.frozen().answers(given).answers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_answers_as_the_ensemble_did_and_never_changes(kind: str) -> None:
    ensemble = KINDS[kind]()
    given = a_batch(999, codes=ensemble.layout.codes).given
    frozen, expected = [], []
    for step in range(0, 100, 4):  # across the end of the ring
        taught(ensemble, range(step, step + 4))
        frozen.append(ensemble.frozen())
        expected.append(ensemble.answers(given).answers.clone())
    for snapshot, answers in zip(frozen, expected, strict=True):
        assert torch.equal(snapshot.answers(given).answers, answers)


def test_trees_learn_what_no_line_separates_and_follow_a_reversal() -> None:
    ensemble = an_ensemble()
    before = taught(ensemble, range(60))
    after = taught(ensemble, range(60, 120), turned=True)
    assert sum(before[-10:]) / 10 > 0.9
    assert sum(after[:2]) / 2 < 0.6
    assert sum(after[30:]) / 30 > 0.85


def test_a_batch_larger_than_the_ring_is_learned_in_parts() -> None:
    ensemble = an_ensemble()
    batch = a_batch(0, n=10_000)
    ensemble.learn(batch, ensemble.answers(batch.given))
    newest = ensemble.memory.rows[ensemble.memory.newest(10), MOST_LAGS:]
    assert torch.equal(newest, batch.given.raw[-10:].flip(0))


def test_logits_that_are_kept_are_those_of_the_forest_after_a_batch_in_parts() -> None:
    ensemble = an_ensemble()
    taught(ensemble, range(3))
    batch = a_batch(3, n=3_000)
    ensemble.learn(batch, ensemble.answers(batch.given))
    for boosted in ensemble.trees.forests.values():
        slots = ensemble.memory.newest(int(boosted.counts[0]))
        kept, now = boosted.fitted[slots], boosted.logits(ensemble.memory.rows[slots])
        torch.testing.assert_close(kept, now, rtol=0.0, atol=1e-4)


def test_an_example_of_weight_zero_is_not_learned() -> None:
    one, other = an_ensemble(), an_ensemble()
    batch = a_batch(0, n=60)
    weights = torch.ones(60)
    weights[::3] = 0.0
    one.learn(batch._replace(weights=weights), one.answers(batch.given))
    kept = weights > 0
    part = batch._replace(
        given=batch.given._replace(raw=batch.given.raw[kept]),
        labels=batch.labels[kept],
        weights=weights[kept],
    )
    other.learn(part, other.answers(part.given))
    same(copies(one), copies(other))


def test_a_batch_of_no_weight_changes_nothing() -> None:
    ensemble = an_ensemble()
    taught(ensemble, range(3))
    before, batch = copies(ensemble), a_batch(3)
    ensemble.learn(batch._replace(weights=torch.zeros(100)), ensemble.answers(batch.given))
    same(before, copies(ensemble))


@pytest.mark.parametrize("compares_codes", [False, True])
def test_it_grows_without_a_change_of_its_answers(compares_codes: bool) -> None:
    layout = Layout(1, WIDTH, 1, WIDTH, compares_codes)
    small = Ensemble(layout, Classes(torch.tensor([True, True, True, False])))
    given = []
    for step in range(60):
        batch = a_batch(step)
        code = batch.given.raw[:, 1:2].round()
        raw = torch.cat([code, batch.given.raw], dim=1)
        unit = torch.ones(1 + WIDTH)
        batch = batch._replace(given=Given(raw, Scaling(0 * unit, unit)))
        small.learn(batch, small.answers(batch.given))
        given.append(batch.given)
    more = Classes(torch.tensor([True] * 3 + [False] * 5))
    large = small.resized(Layout(4, 2 * WIDTH, 1, WIDTH, compares_codes), more)
    asked = given[-1].raw
    wide = torch.full((100, 4 + 2 * WIDTH), math.inf)
    wide[:, :1], wide[:, 4 : 4 + WIDTH] = asked[:, :1], asked[:, 1:]
    unit = torch.ones(4 + 2 * WIDTH)
    before = small.answers(given[-1])
    after = large.answers(Given(wide, Scaling(0 * unit, unit)))
    torch.testing.assert_close(after.logits[..., :4], before.logits)
    assert float(after.answers[:, :, 4:].abs().max()) == 0.0
    trees = slice(0, 3)
    torch.testing.assert_close(after.answers[trees, :, :4], before.answers[trees])
    assert torch.equal(large.compared.apart[:1], small.compared.apart)


@pytest.mark.parametrize("has_ranks", [True, False])
def test_a_code_that_is_new_is_compared_from_then_on(has_ranks: bool) -> None:
    ensemble = coded(has_ranks)
    taught(ensemble, range(10))
    more = Layout(3, WIDTH - 2, 3, WIDTH - 2, compares_codes=True)
    larger = ensemble.resized(more, ensemble.outcome)
    assert larger.compared.apart.tolist() == [*ensemble.compared.apart.tolist(), 1.0]
    for step in range(10, 40):
        batch = a_batch(step, codes=2)
        code = (batch.labels % 2)[:, None].float()
        raw = torch.cat([batch.given.raw[:, :2], code, batch.given.raw[:, 2:]], dim=1)
        given = Given(raw, Scaling(torch.zeros(WIDTH + 1), torch.ones(WIDTH + 1)))
        larger.learn(batch._replace(given=given), larger.answers(given))
    assert larger.compared.apart[2] == pytest.approx(3.0, rel=0.1), "a third has none, 0 or 1 each"


def test_without_codes_it_is_the_same_to_the_bit() -> None:
    plain = an_ensemble()
    compares = an_ensemble(NUMBERS._replace(compares_codes=True))
    taught(plain, range(20))
    taught(compares, range(20))
    same(copies(plain), copies(compares))
    given = a_batch(999).given
    assert torch.equal(plain.answers(given).answers, compares.answers(given).answers)


@pytest.mark.parametrize("used", [0, WIDTH])
def test_room_that_is_not_in_use_is_not_compared(used: int) -> None:
    layout = Layout(16, 32, 2, used)
    ensemble = Ensemble(layout, Classes(torch.ones(3, dtype=torch.bool)))
    for step in range(3):
        batch = a_batch(step)
        raw = torch.full((100, layout.width), math.inf)
        raw[:, :2] = batch.labels[:, None].float()
        raw[:, 16 : 16 + used] = batch.given.raw[:, :used]
        unit = torch.ones(layout.width)
        given = Given(raw, Scaling(0 * unit, unit))
        answered = ensemble.answers(given)
        ensemble.learn(batch._replace(given=given), answered)
    assert ensemble.compared.present().numbers.shape == (300, max(1, used))
    assert bool(torch.isfinite(answered.answers).all())
    torch.testing.assert_close(answered.answers.sum(dim=2), torch.ones(answered.answers.shape[:2]))


def test_wild_and_missing_numbers_leave_everything_finite() -> None:
    ensemble = an_ensemble()
    for step in range(12):
        batch = a_batch(step)
        batch.given.raw[::2, 0] = 1e18
        batch.given.raw[1::2, 1] = -1e18
        batch.given.raw[:, 2] = math.inf
        answered = ensemble.answers(batch.given)
        assert bool(torch.isfinite(answered.answers).all())
        ensemble.learn(batch, answered)
    for name, tensor in ensemble.tensors().items():
        if name not in ("memory.rows", "memory.edges") and not name.endswith("thresholds"):
            assert bool(torch.isfinite(tensor).all()), name
