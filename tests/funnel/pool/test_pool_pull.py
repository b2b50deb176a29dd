"""Pulled experts go a share of the way to the pool's weighted mean after each step."""

from dataclasses import replace

import pytest
import torch

from funnel import Pool
from tests.funnel.pool.trained_pool import EXPERTS, batch, learn, trained

PULLS = (0.0, 0.1, 0.0, 0.3)


def a_pool(pulls: tuple[float, ...], on_host: bool = True) -> Pool:
    torch.manual_seed(0)
    experts = [replace(e, pull=pull) for e, pull in zip(EXPERTS, pulls, strict=True)]
    pool = Pool(torch.nn.Linear(6, 3), 6, experts)
    pool.execution = replace(pool.execution, on_host=on_host)
    return pool


@pytest.mark.parametrize("on_host", [False, True])
def test_a_step_is_that_without_a_pull_and_then_the_pull(on_host: bool) -> None:
    pulled, free = a_pool(PULLS, on_host), a_pool((0.0,) * 4, on_host)
    for seed in range(6):
        for mine, theirs in zip(free.tensors().values(), pulled.tensors().values(), strict=True):
            mine.copy_(theirs)
        learn(pulled, seed)
        learn(free, seed)
        weights = free.mixing.log_weights.exp()
        for name, parameter in free.parameters.items():
            mean = torch.einsum("k,k...->...", weights, parameter)
            for k, pull in enumerate(PULLS):
                expected = (1 - pull) * parameter[k] + pull * mean
                torch.testing.assert_close(pulled.parameters[name][k], expected)


def test_a_batch_that_is_not_kept_pulls_nobody() -> None:
    pool = a_pool(PULLS, on_host=False)
    for seed in range(4):
        learn(pool, seed)
    before = {k: v.clone() for k, v in pool.tensors().items()}
    seen = pool.score(*batch(9))
    pool.update(*batch(9), pool.decide(seen, torch.tensor(False)))
    changed = {k for k, v in pool.tensors().items() if not torch.equal(v, before[k])}
    assert {k.rpartition(".")[2] for k in changed} <= {"nonfinite"}


def test_an_expert_that_diverges_pulls_nobody_away() -> None:
    pool = trained()
    pool.pulls = a_pool(PULLS).pulls
    for parameter in pool.parameters.values():
        parameter[2] = torch.nan
    learn(pool, 20)
    assert all(parameter.isfinite().all() for parameter in pool.parameters.values())
