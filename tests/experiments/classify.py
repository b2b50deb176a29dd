"""Tables 1 and 2 of the paper (§4.2): image classifiers with and without Funnel.

Table 1: MobileNetV1 on CIFAR-10 for the paper's 150,000 steps, which takes a GPU some hours:

    python -m tests.experiments.classify --table 1 --data cifar10 --checkpoint table1.pt

Table 2: ResNet-50 on ImageNet, in folders train/ and val/ with one folder per class:

    python -m tests.experiments.classify --table 2 --data /data/imagenet --steps 450000 \\
        --batch-size 256 --checkpoint table2.pt

A single short run that needs neither a GPU nor those data:

    python -m tests.experiments.classify --data mnist32 --optimizer momentum --funnel \\
        --width 0.25 --steps 300 --batch-size 64

A run with --checkpoint continues where it was interrupted, bit for bit on a CPU. Without --funnel
the optimizer is Funnel with γp = γs = 0, which equals the inner optimizer under heavy-ball momentum
bit for bit. The data are cifar10 (the binary version, downloaded once), mnist32 (a stand-in: real
MNIST padded to 32 x 32 in three channels), or the path of an image folder.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from streams.errors import FunnelError
from tests.experiments.images import open_source
from tests.experiments.training import OPTIMIZERS, SCHEDULES, Result, Run, Settings

# For each table, its rows: optimizer, whether Funnel learns its step sizes, schedule.
TABLES = {
    1: (
        ("momentum", False, "cosine"),
        ("momentum", False, "constant"),
        ("momentum", True, "constant"),
    ),
    2: (
        ("momentum", False, "cosine"),
        ("adagrad-ema", False, "cosine"),
        ("momentum", True, "constant"),
        ("adagrad-ema", True, "constant"),
    ),
}


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| optimizer | schedule | steps | final accuracy | best accuracy | train loss "
        "| median scale | s/step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.settings.name} | {r.settings.schedule} | {r.settings.steps:,} "
        f"| {r.final_accuracy:.4f} | {r.best_accuracy:.4f} | {r.train_loss:.4f} "
        f"| {r.median_scale:.3g} | {r.seconds_a_step:.3f} |"
        for r in results
    ]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.experiments.classify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="cifar10", help="cifar10, mnist32, or the path of an image folder")
    add("--table", type=int, choices=sorted(TABLES), help="run all rows of this table")
    add("--network", choices=["mobilenet_v1", "resnet50"], help="default: that of the table")
    add("--optimizer", choices=sorted(OPTIMIZERS), default="momentum")
    add("--funnel", action="store_true", help="learn scale and gains; otherwise run a baseline")
    add("--schedule", choices=SCHEDULES, default="constant")
    add("--lr", type=float, help="default: 0.1 momentum, 0.01 AdaGrad, 0.001 otherwise")
    add("--momentum", type=float, help="default: 0.9 for momentum, 0 otherwise")
    add("--nesterov", action="store_true")
    add("--gain-lr", type=float, default=1e-4, help="γp (default %(default)s, the paper's)")
    add("--scale-lr", type=float, default=1e-4, help="γs (default %(default)s)")
    add("--weight-decay", type=float, default=5e-4, help="decoupled (default %(default)s)")
    add("--warmup", type=int, default=0, help="steps of linear warm-up")
    add("--width", type=float, default=1.0, help="MobileNet's width multiplier")
    add("--steps", type=int, default=150_000)
    add("--batch-size", type=int, default=128)
    add("--evaluate-every", type=int, default=0, help="in steps; 0: only at the end")
    add("--seed", type=int, default=0)
    add("--compiled", action="store_true", help="fuse the optimizer step through torch.compile")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    add("--workers", type=int, default=8, help="processes that decode an image folder")
    add("--image-size", type=int, default=224, help="crop the images of a folder to this side")
    add("--checkpoint", type=Path, help="save here; continue from it if it exists")
    add("--log", type=Path, help="append loss and accuracy to this CSV file at each evaluation")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows that the command line asks for; return the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    args.network = args.network or ("resnet50" if args.table == 2 else "mobilenet_v1")
    settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)})
    rows = [settings]
    if args.table:
        rows = [
            replace(settings, optimizer=optimizer, funnel=funnel, schedule=schedule)
            for optimizer, funnel, schedule in TABLES[args.table]
        ]
    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(best if args.device == "auto" else args.device)
    results = []
    try:
        source = open_source(args.data, device, args.workers, args.image_size)
        for row in rows:
            run = Run(row, source, device)
            checkpoint = args.checkpoint
            if checkpoint and args.table:
                name = f"{checkpoint.stem}-{row.name}-{row.schedule}{checkpoint.suffix}"
                checkpoint = checkpoint.with_name(name)
            if checkpoint and checkpoint.exists():
                run.resume(checkpoint)
            results.append(run.train(checkpoint, args.log))
    except FunnelError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
