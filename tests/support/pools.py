"""Modules, experts and batches for tests of the pool."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from funnel import SGD, Adagrad, AdagradEMA, Adam, Expert, Pool, RMSprop

FEATURES, CLASSES, N = 12, 4, 20
KEEP = torch.tensor(True)
EXPERTS = (
    Expert(Adagrad(initial_accumulator_value=0.1), 0.1, 0.1, 0.03),
    Expert(Adagrad(initial_accumulator_value=0.1), 0.01, 0.01, 0.03, momentum=0.5),
    Expert(Adagrad(), 0.03, 0.1, 0.0),
    Expert(SGD(), 0.3, 0.01, 0.01, momentum=0.9),
    Expert(Adam(), 0.01, 0.01, 0.01),
    Expert(RMSprop(), 0.01, 0.0, 0.1),
    Expert(AdagradEMA(), 0.1, 0.3, 0.3),
)


def logistic() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, CLASSES)
    )


def tanh() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 9), nn.Tanh(), nn.Linear(9, CLASSES))


def dropout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 9), nn.Dropout(0.3), nn.ReLU(), nn.Linear(9, CLASSES, bias=False)
    )


def batchnorm() -> nn.Module:
    # A bias before batch normalization has a gradient of mere rounding, with a random sign.
    hidden = nn.Linear(FEATURES, 9, bias=False)
    return nn.Sequential(hidden, nn.BatchNorm1d(9), nn.Linear(9, CLASSES))


class Tempered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.temperature = nn.Linear(FEATURES, CLASSES), nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layer(inputs) * self.temperature
        return logits


def tempered() -> nn.Module:
    return Tempered()


def frozen() -> nn.Module:
    module = mlp()
    next(module.children()).requires_grad_(False)
    return module


def shared() -> nn.Module:
    hidden = nn.Linear(FEATURES, FEATURES)
    return nn.Sequential(hidden, nn.ReLU(), hidden, nn.ReLU(), nn.Linear(FEATURES, CLASSES))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.other.weight = self.one.weight
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.last(self.other(self.one(inputs).relu()).relu())
        return logits


def tied() -> nn.Module:
    return Tied()


def hooked() -> nn.Module:
    module = nn.Linear(FEATURES, CLASSES)
    module.register_forward_hook(lambda _, __, logits: 0.5 * logits)
    return module


FACTORIES = (logistic, mlp, tanh, dropout, batchnorm, tempered, frozen, shared, tied, hooked)


MODULES = {m.__name__: m for m in FACTORIES}


def made(name: str) -> nn.Module:
    torch.manual_seed(5)
    return MODULES[name]()


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(FEATURES, CLASSES, generator=generator)
    for k in range(count):
        inputs = torch.randn(N, FEATURES, generator=generator) * (100.0 if k == 7 else 1.0)
        yield inputs, (inputs @ truth).argmax(dim=1)


def learn(pool: Pool, inputs: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    seen = pool.score(inputs, labels)
    pool.update(inputs, labels, pool.decide(seen, KEEP))
    return seen.losses
