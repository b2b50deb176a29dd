"""Microseconds per optimizer step of Funnel and torch.optim.Adagrad, on the same tensors.

    python -m tests.benchmarks.step [--device cuda] [--cases 2,50,10M,100M] [--rounds 9]

What bounds the figures. Up to some ten thousand elements, dispatch dominates a step: eager Funnel
issues three operators a tensor and about 60 others, compiled Funnel a single call. On large ones,
memory traffic dominates: in fp32, Funnel(Adagrad) moves 52 bytes per element (it reads g and ν for
the scale; then it reads g, and reads and writes w, a, log p, m and ν), and fused AdaGrad moves 20.
The ratio of these floors, 2.6, is to be expected if neither working set fits a cache. A last-level
cache that holds AdaGrad's 12 bytes per element but not Funnel's 28 raises the measured ratio.

All contenders are timed in turn in each round, so that noise hits all equally. The table gives the
median over the rounds and the interquartile range, the ratio of medians to foreach and to fused
AdaGrad, the operators that an eager step dispatches, and the share of the bandwidth floor: bytes /
bandwidth / median. The bandwidth is measured in the same round, by in-place additions over tensors
that fill the same memory as Funnel's.
"""

import argparse
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Adagrad, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from funnel import Funnel

CASES = {
    "2": [(784, 10), (10,)],
    "50": [(64, 64), (64,)] * 25,
    "10M": [(10_000_000,)],
    "100M": [(100_000_000,)],
}
FUNNEL_BYTES, ADAGRAD_BYTES, FUNNEL_COPIES = 52, 20, 7
CONTENDERS: dict[str, tuple[Callable[[list[nn.Parameter]], Optimizer], int]] = {
    "Adagrad single": (lambda ps: Adagrad(ps, foreach=False), ADAGRAD_BYTES),
    "Adagrad foreach": (lambda ps: Adagrad(ps, foreach=True), ADAGRAD_BYTES),
    "Adagrad fused": (lambda ps: Adagrad(ps, fused=True), ADAGRAD_BYTES),
    "Funnel eager": (lambda ps: Funnel(ps), FUNNEL_BYTES),
    "Funnel compiled": (lambda ps: Funnel(ps, compiled=True), FUNNEL_BYTES),
}
SECONDS_A_TURN = 0.15
HEAD = ["tensors", "optimizer", "µs a step", "IQR", "× foreach", "× fused", "operators"]
HEAD += ["MB moved", "of floor"]


class Counted(TorchDispatchMode):
    """Counts the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and "promote_types" not in str(func):
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def contenders(device: str) -> list[str]:
    """Return the contenders for the device: torch has no fused AdaGrad for a GPU."""
    return [name for name in CONTENDERS if device == "cpu" or name != "Adagrad fused"]


def prepare(
    make: Callable[[list[nn.Parameter]], Optimizer], shapes: list, device: str
) -> Optimizer:
    params = [nn.Parameter(torch.randn(s, device=device)) for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    opt = make(params)
    for _ in range(3):
        opt.step()
    return opt


def turn(action: Callable[[], object], device: str, seconds: float = SECONDS_A_TURN) -> float:
    """Return microseconds per call over a turn of about ``seconds``."""

    def timed(calls: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            action()
        synchronize(device)
        return (time.perf_counter() - start) / calls

    return timed(max(1, int(seconds / timed(1)))) * 1e6


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def run(case: str, device: str, rounds: int) -> list[str]:
    shapes = CASES[case]
    numel = sum(torch.Size(s).numel() for s in shapes)
    first, *others = (torch.randn(numel, device=device) for _ in range(FUNNEL_COPIES))

    def add_all() -> None:
        for other in others:
            other.add_(first)

    optimizers = {name: prepare(CONTENDERS[name][0], shapes, device) for name in contenders(device)}
    times: dict[str, list[float]] = {name: [] for name in (*optimizers, "add")}
    for i in range(rounds):
        sys.stderr.write(f"\r{case}: round {i + 1} of {rounds} ")
        times["add"].append(turn(add_all, device))
        for name, opt in optimizers.items():
            times[name].append(turn(opt.step, device))
    sys.stderr.write("\n")
    median = {name: statistics.median(t) for name, t in times.items()}
    bandwidth = 12 * numel * len(others) / median["add"]  # bytes per microsecond
    rows = []
    for name in optimizers:
        low, _, high = statistics.quantiles(times[name], n=4)
        moved = CONTENDERS[name][1] * numel
        operators = "-"
        if name != "Funnel compiled":
            with Counted() as counted:
                optimizers[name].step()
            operators = f"{counted.found.total():,}"
        fused = f"{median[name] / median['Adagrad fused']:.2f}" if device == "cpu" else "-"
        rows.append(
            f"| {case} | {name} | {median[name]:,.0f} | {low:,.0f}-{high:,.0f} "
            f"| {median[name] / median['Adagrad foreach']:.2f} "
            f"| {fused} "
            f"| {operators} | {moved / 1e6:,.2f} | {moved / bandwidth / median[name]:.0%} |"
        )
    rows.append(f"| {case} | *bandwidth: {bandwidth / 1e3:.1f} GB/s* | | | | | | | |")
    return rows


def chip(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    return f"{', '.join(names) or platform.processor()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cases", default="2,50,10M,100M", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    rows = [row for case in args.cases.split(",") for row in run(case, args.device, args.rounds)]
    print(f"{chip(args.device)}; torch {torch.__version__}; median of {args.rounds} rounds\n")
    print(f"| {' | '.join(HEAD)} |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
