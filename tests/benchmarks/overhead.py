"""The optimizer's share of a training step, on real networks, for Funnel and its peers.

    python -m tests.benchmarks.overhead [--networks mobilenet,transformer] [--rounds 7]

MobileNetV1 [Howard et al. 2017] at half width learns images of 96 × 96 in batches of 32. The
transformer is GPT-like: 4 layers of width 256, 4 heads, a vocabulary of 8,192, and batches of 16
sequences of 128 tokens. The data are random, because they do not change what a step costs.

In each round, every optimizer takes one step with the gradients of one pass, in turn. The pass,
forward and backward, is timed in the round as well. The share is step / (pass + step), from the
medians over the rounds; the range is that of the rounds. Each optimizer has the defaults of its
package. One that is not installed is skipped, and named. Mechanic is `mechanic-pytorch`.
"""

import argparse
import gc
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, AdamW, Optimizer

from funnel import Adam, Funnel
from tests.benchmarks.measure import show, table
from tests.benchmarks.step import Counted, chip

Params = Iterable[nn.Parameter]


class MobileNet(nn.Sequential):
    """MobileNetV1, with this multiple of its channels."""

    def __init__(self, width: float = 0.5, classes: int = 1000) -> None:
        plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
        plan += [(1024, 2), (1024, 1)]
        channels = int(32 * width)
        layers = self._conv(3, channels, 3, stride=2)
        for wide, stride in plan:
            out = int(wide * width)
            layers += self._conv(channels, channels, 3, stride, groups=channels)
            layers += self._conv(channels, out, 1)
            channels = out
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
        super().__init__(*layers, *pooled)

    @staticmethod
    def _conv(into: int, out: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(into, out, size, stride, size // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(out), nn.ReLU()]


class Transformer(nn.Module):
    """A causal language model, with the input's embedding at its output."""

    def __init__(self, vocabulary: int = 8192, width: int = 256, layers: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(128, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n)
        found = self.layers(self.tokens(tokens) + self.places[:n], mask=mask, is_causal=True)
        return self.norm(found) @ self.tokens.weight.T


def mobilenet() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    images, labels = torch.randn(32, 3, 96, 96), torch.randint(1000, (32,))
    return MobileNet(), lambda net: nn.functional.cross_entropy(net(images), labels)


def transformer() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    tokens = torch.randint(8192, (16, 129))

    def loss(net: nn.Module) -> Tensor:
        outputs = net(tokens[:, :-1]).flatten(0, 1)
        return nn.functional.cross_entropy(outputs, tokens[:, 1:].flatten())

    return Transformer(), loss


NETWORKS = {"mobilenet": mobilenet, "transformer": transformer}


def of(
    package: str, make: Callable[[ModuleType, Params], Optimizer]
) -> Callable[[Params], Optimizer]:
    """Return what makes an optimizer of a package, which it imports."""
    return lambda params: make(importlib.import_module(package), params)


def schedulefree(package: ModuleType, params: Params) -> Optimizer:
    made = package.AdamWScheduleFree(params)
    made.train()
    optimizer: Optimizer = made
    return optimizer


OPTIMIZERS: dict[str, Callable[[Params], Optimizer]] = {
    "AdaGrad, foreach": lambda ps: Adagrad(ps, foreach=True),
    "AdamW, foreach": lambda ps: AdamW(ps, foreach=True),
    "Funnel(AdaGrad)": lambda ps: Funnel(ps),
    "Funnel(Adam)": lambda ps: Funnel(ps, inner=Adam()),
    "Prodigy": of("prodigyopt", lambda m, ps: m.Prodigy(ps)),
    "D-Adaptation, Adam": of("dadaptation", lambda m, ps: m.DAdaptAdam(ps)),
    "schedule-free AdamW": of("schedulefree", schedulefree),
    "Mechanic(AdamW)": of(
        "mechanic_pytorch", lambda m, ps: m.mechanize(AdamW)(ps, lr=1.0, foreach=True)
    ),
}


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measured(network: str, rounds: int) -> list[list[str]]:
    """Return the rows of one network."""
    torch.manual_seed(0)
    net, loss = NETWORKS[network]()
    params = list(net.parameters())
    optimizers: dict[str, Optimizer] = {}
    for name, make in OPTIMIZERS.items():
        own = [nn.Parameter(p.detach().clone()) for p in params]
        try:
            optimizers[name] = make(own)
        except ModuleNotFoundError as error:
            sys.stderr.write(f"{name} is skipped: {error}\n")

    def pass_() -> None:
        net.zero_grad()
        loss(net).backward()

    def step(optimizer: Optimizer) -> float:
        for own, p in zip(optimizer.param_groups[0]["params"], params, strict=True):
            own.grad = p.grad.clone()
        return seconds(optimizer.step)

    pass_()
    for optimizer in optimizers.values():
        for _ in range(2):
            step(optimizer)
    passes: list[float] = []
    steps: dict[str, list[float]] = {name: [] for name in optimizers}
    gc.disable()
    for _ in range(rounds):
        passes.append(seconds(pass_))
        for name, optimizer in optimizers.items():
            steps[name].append(step(optimizer))
    gc.enable()
    elements = sum(p.numel() for p in params)
    about = f"{network}: {len(params)} tensors, {elements / 1e6:.1f} M"
    rows = [[about, "forward and backward", show([1e3 * s for s in passes], ".1f"), "", ""]]
    for name, own in steps.items():
        shares = [100 * s / (s + p) for s, p in zip(own, passes, strict=True)]
        whole = statistics.median(own) / (statistics.median(own) + statistics.median(passes))
        with Counted() as counted:
            optimizers[name].step()
        spread = f"{100 * whole:.1f} % ({min(shares):.1f} to {max(shares):.1f})"
        milliseconds = show([1e3 * s for s in own], ".2f")
        rows.append([network, name, milliseconds, spread, str(counted.found.total())])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rows = [row for name in args.networks.split(",") for row in measured(name, args.rounds)]
    print(f"{chip('cpu')}; torch {torch.__version__}; {args.rounds} rounds\n")
    print(table(["network", "optimizer", "ms a step", "share of training", "operators"], rows))


if __name__ == "__main__":
    main()
