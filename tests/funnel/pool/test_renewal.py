"""An expert that predicts worse than a model that knows nothing is renewed; others remember."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from funnel import SGD, Adagrad, Expert, Pool
from funnel.pool.renewal import LIMIT, UNKNOWN, Renewal
from tests.support.pools import CLASSES, FEATURES, KEEP, MODULES, learn, made

MEMORY = Expert(Adagrad(initial_accumulator_value=0.1), 0.3, 0.01, 0.03)
RENEWS = replace(MEMORY, renews=True)
N = 60


def batch(seed: int, shift: int = 0) -> tuple[Tensor, Tensor]:
    """Return examples whose labels a linear model can tell; another shift gives them others."""
    inputs = torch.randn(N, FEATURES, generator=torch.Generator().manual_seed(seed))
    return inputs, (inputs[:, :CLASSES].argmax(dim=1) + shift) % CLASSES


def trained(*experts: Expert, name: str = "logistic", on_host: bool = True) -> Pool:
    pool = Pool(made(name), FEATURES, experts)
    pool.execution = replace(pool.execution, on_host=on_host)
    for seed in range(60):
        learn(pool, *batch(seed))
    return pool


def of(pool: Pool, k: int) -> list[Tensor]:
    """Return what an expert has learned."""
    return [t[k] for t in (*pool.parameters.values(), *pool.state.log_gain, *pool.state.step)]


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_one_that_walks_is_after_a_shift_as_if_it_had_seen_nothing_before(
    name: str, on_host: bool
) -> None:
    walks = replace(RENEWS, steps=3)
    pool = trained(MEMORY, walks, name=name, on_host=on_host)
    assert pool.renewal.excess.tolist() == [UNKNOWN, 0.0]
    learn(pool, *batch(100, shift=1))
    fresh = Pool(made(name), FEATURES, [walks])
    learn(fresh, *batch(100, shift=1))
    for mine, expected in zip(of(pool, 1), of(fresh, 0), strict=True):
        torch.testing.assert_close(mine, expected)
    assert pool.renewal.excess.tolist() == [UNKNOWN, UNKNOWN]
    assert pool.state.step[0].flatten().tolist() == [61, 1]


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"frozen"}))  # which never is sure enough
def test_one_of_one_step_a_batch_begins_with_the_next(name: str, on_host: bool) -> None:
    pool = trained(MEMORY, RENEWS, name=name, on_host=on_host)
    learn(pool, *batch(100, shift=1))
    fresh = Pool(made(name), FEATURES, [RENEWS])
    for mine, expected in zip(pool.parameters.values(), fresh.parameters.values(), strict=True):
        assert torch.equal(mine[1], expected[0])
        assert not torch.equal(mine[0], expected[0])
    for mine, expected in zip(pool.buffers.values(), fresh.buffers.values(), strict=True):
        assert torch.equal(mine[1], expected[0])
    learn(pool, *batch(101, shift=1))
    mine, expected = (next(iter(one.parameters.values())) for one in (pool, fresh))
    assert not torch.equal(mine[1], expected[0])


def test_who_remembers_does_not_notice() -> None:
    both, alone = trained(MEMORY, RENEWS), trained(MEMORY, MEMORY)
    for seed in range(100, 103):
        for pool in (both, alone):
            learn(pool, *batch(seed, shift=1))
    for mine, expected in zip(of(both, 0), of(alone, 0), strict=True):
        assert torch.equal(mine, expected)


def test_a_pool_that_begins_anew_is_right_sooner() -> None:
    losses = {}
    for expert in (MEMORY, RENEWS):
        pool = trained(MEMORY, replace(expert, steps=3))
        losses[expert.renews] = sum(
            float(learn(pool, *batch(seed, shift=1)).mean()) for seed in range(100, 120)
        )
    assert losses[True] < 0.8 * losses[False]


def test_all_may_begin_at_once() -> None:
    pool = trained(RENEWS, replace(RENEWS, inner=SGD()))
    learn(pool, *batch(100, shift=1))
    for parameter, blank in zip(
        pool.parameters.values(), made("logistic").parameters(), strict=True
    ):
        assert torch.equal(parameter, torch.stack([blank.detach()] * 2))


def test_a_batch_that_is_held_back_counts_for_nothing() -> None:
    pool = trained(MEMORY, RENEWS, on_host=False)
    before = {name: tensor.clone() for name, tensor in pool.tensors().items()}
    inputs, labels = batch(100, shift=1)
    seen = pool.score(inputs, labels)
    pool.update(inputs, labels, pool.decide(seen, ~KEEP))
    changed = {k for k, v in pool.tensors().items() if not torch.equal(v, before[k])}
    assert all(name.endswith("nonfinite") for name in changed)


def test_weights_that_begin_worse_than_none_are_given_time() -> None:
    module = made("logistic")
    with torch.no_grad():
        next(module.parameters()).mul_(30.0)
    pool = Pool(module, FEATURES, [RENEWS, replace(RENEWS, steps=3)])
    losses = [float(learn(pool, *batch(seed)).mean()) for seed in range(150)]
    assert losses[0] > math.log(CLASSES) + LIMIT / N
    assert pool.state.step[0].flatten().tolist() == [150, 150]
    assert losses[-1] < math.log(CLASSES)


def test_what_is_lost_beyond_a_blank_model_is_summed_once_something_was_known() -> None:
    renewal = Renewal(torch.tensor([True, True, False]))
    blank, better, worse = math.log(4), math.log(4) - 1.0, math.log(4) + 2.0
    all_three = torch.tensor([True, True, True])

    def update(*losses: float, keep: torch.Tensor = all_three) -> list[float]:
        renewal.update(torch.tensor(losses)[:, None].expand(3, 10), math.log(4), keep)
        return [round(s, 3) for s in renewal.excess.tolist()]

    assert update(worse, worse, worse) == [UNKNOWN] * 3
    assert update(better, blank, better) == [0.0, UNKNOWN, UNKNOWN]
    assert update(worse, better, worse) == [20.0, 0.0, UNKNOWN]
    assert update(better, worse, worse, keep=~all_three) == [20.0, 0.0, UNKNOWN]
    assert not renewal.due().any()
    assert update(worse, better, worse) == [40.0, 0.0, UNKNOWN]
    assert renewal.due().tolist() == [True, False, False]
    renewal.forget(renewal.due())
    assert update(worse, worse, worse) == [UNKNOWN, 20.0, UNKNOWN]
    assert update(better, better, better) == [0.0, 10.0, UNKNOWN]


def test_who_begins_anew_forgets_the_level_of_its_gradients() -> None:
    pool = trained(MEMORY, RENEWS)
    learn(pool, *batch(100, shift=1))
    assert pool.cap.level.isinf().tolist() == [False, True]


def test_who_restarts_from_the_best_has_shown_nothing_yet() -> None:
    pool = trained(RENEWS, RENEWS)
    assert pool.renewal.excess.tolist() == [0.0, 0.0]
    for parameter in pool.parameters.values():
        parameter[1] = torch.nan
    learn(pool, *batch(100))
    assert pool.renewal.excess.tolist() == [0.0, UNKNOWN]
