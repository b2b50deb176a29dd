"""A pool of four experts that has learned eight batches, and more batches for it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from funnel import SGD, Adagrad, Expert, Pool
from tests.support.pools import KEEP

EXPERTS = (
    Expert(Adagrad(), 0.1, 0.1, 0.03),
    Expert(Adagrad(), 0.01, 0.01, 0.03),
    Expert(SGD(), 0.1, 0.01, 0.03),
    Expert(SGD(), 0.3, 0.01, 0.03),
)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(30, 6, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs[:, :3].argmax(dim=1)


def trained(hidden: bool = False, on_host: bool = True) -> Pool:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5), nn.ReLU()] if hidden else []
    pool = Pool(nn.Sequential(*layers, nn.Linear(5 if hidden else 6, 3)), 6, EXPERTS)
    pool.execution = replace(pool.execution, on_host=on_host)
    for seed in range(8):
        learn(pool, seed)
    return pool


def learn(pool: Pool, seed: int) -> Tensor:
    seen = pool.score(*batch(seed))
    assert seen.answers.isfinite().all()
    decision = pool.decide(seen, KEEP)
    pool.update(*batch(seed), decision)
    return decision.factor.isnan()
