"""Microseconds per step of an embedding with sparse gradients: Funnel and torch's optimizers.

    python -m tests.benchmarks.embedding [--device cuda] [--rows 10000,1000000] [--rounds 9]

Each step touches 1,000 rows of 16 numbers, drawn uniformly, so a table of 10,000 rows has some
duplicates among them. All contenders are timed in turn in each round. The table gives medians over
the rounds, and median, lowest and highest of the ratios in each round to torch's AdaGrad and to
SparseAdam.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Adagrad, Optimizer, SparseAdam

import funnel
from funnel import Funnel
from tests.benchmarks.measure import progress, ratios, table
from tests.benchmarks.step import chip, turn

TOUCHED, WIDTH = 1000, 16
CONTENDERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "Adagrad": lambda ps: Adagrad(ps),
    "SparseAdam": lambda ps: SparseAdam(ps),
    "Funnel(Adagrad)": lambda ps: Funnel(ps),
    "Funnel(Adam)": lambda ps: Funnel(ps, funnel.Adam()),
}


def prepare(make: Callable[[list[nn.Parameter]], Optimizer], rows: int, device: str) -> Optimizer:
    embedding = nn.Embedding(rows, WIDTH, sparse=True, device=device)
    embedding(torch.randint(0, rows, (TOUCHED,), device=device)).square().sum().backward()
    opt = make([embedding.weight])
    for _ in range(3):
        opt.step()
    return opt


def run(rows: int, device: str, rounds: int) -> list[list[str]]:
    optimizers = {name: prepare(make, rows, device) for name, make in CONTENDERS.items()}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for number in range(rounds):
        progress(f"{rows:,} rows: round {number + 1} of {rounds}")
        for name, opt in optimizers.items():
            times[name].append(turn(opt.step, device))
    progress("")
    return [
        [
            f"{rows:,}",
            name,
            f"{statistics.median(own):,.0f}",
            ratios(own, times["Adagrad"]),
            ratios(own, times["SparseAdam"]),
        ]
        for name, own in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", default="10000,1000000", help="sizes of the table")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    found = [line for n in args.rows.split(",") for line in run(int(n), args.device, args.rounds)]
    print(f"{chip(args.device)}; torch {torch.__version__}; median of {args.rounds} rounds\n")
    print(table(["rows", "optimizer", "µs a step", "× Adagrad", "× SparseAdam"], found))


if __name__ == "__main__":
    main()
