"""Figure 3 of the paper (§4.1): logistic regression on MNIST whose distribution shifts twice.

    python -m funnel.experiments.figure3 --out figure3.png

Protocol. The images are real MNIST; uniform noise replaces the background (pixels under 0.01).
They are rotated by 90° in the first phase, 0° in the second and 45° in the third. Each phase has
20,000 training images (a third of the 60,000, in random order), in batches of 10,000, for 100
epochs: 200 steps. The model has 784 × 10 weights and a bias, which start at zero; the loss is
cross-entropy. After every epoch the accuracy is measured on the 10,000 test images, rotated by the
same angle, with noise of their own. The optimizer gets no signal of the shifts and keeps all its
state.

The paper says both "batch size 10k for 100 epochs" and "every 100k steps (100 epochs)". Both cannot
hold; this command runs the first.

A grid search chooses the learning rate of AdaGrad, and the learning rate, γp and γs of
Funnel(AdaGrad), by the mean accuracy over all epochs on a held-out tenth of the training images.
Its seed is used for nothing else. Both then run on the report seeds. A second table shows the best
score of each at every learning rate; Funnel's is at the best γp and γs for that rate.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from funnel import Adagrad, Funnel
from streams.errors import FunnelError
from streams.sources import mnist
from streams.sources.images import background_noise, rotate

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
GAIN_RATES = (0.01, 0.03, 0.1)
SCALE_RATES = (0.01, 0.03)
SELECTION_SEED = 0
SHOWN_GAINS = 10
COLOURS = ("#c2571a", "#1b6ca8")
Make = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Protocol:
    """The size of one run; images, batch and epochs are per phase."""

    rotations: tuple[int, ...] = (90, 0, 45)
    images: int = 20_000
    batch: int = 10_000
    epochs: int = 100
    test_images: int = 10_000


class Split(NamedTuple):
    """Images as fp32 [n, 784] in [0, 1] and labels as int64 [n]."""

    images: Tensor
    labels: Tensor


class Phase(NamedTuple):
    """One distribution: the examples to learn from, and those held out."""

    train: Split
    held_out: Split


@dataclass
class Curves:
    """The curves of one run, with one entry per epoch over all phases."""

    accuracy: list[float] = field(default_factory=list)
    scales: dict[str, list[float]] = field(default_factory=dict)
    gains: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """Hyperparameters of Funnel(AdaGrad), or of AdaGrad if ``gain_lr`` is None."""

    lr: float
    gain_lr: float | None = None
    scale_lr: float | None = None

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the model's parameters."""
        if self.gain_lr is None or self.scale_lr is None:
            return torch.optim.Adagrad(model.parameters(), lr=self.lr)
        return Funnel(
            model.named_parameters(),
            Adagrad(),
            lr=self.lr,
            gain_lr=self.gain_lr,
            scale_lr=self.scale_lr,
        )

    def __str__(self) -> str:
        rates = {"lr": self.lr, "γp": self.gain_lr, "γs": self.scale_lr}
        return ", ".join(f"{k} {v:g}" for k, v in rates.items() if v is not None)


def make_phases(data: mnist.MNIST, protocol: Protocol, seed: int, validate: bool) -> list[Phase]:
    """Return the phases of a run.

    With ``validate``, the held-out examples are a tenth of each training split; otherwise they are
    test images.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.train_images))
    test = rng.permutation(len(data.test_images))[: protocol.test_images]
    phases = []
    for number, degrees in enumerate(protocol.rotations):
        chosen = order[number * protocol.images : (number + 1) * protocol.images]
        train = _split(data.train_images[chosen], data.train_labels[chosen], degrees, rng)
        if validate:
            held = protocol.images // 10
            phases.append(Phase(_rows(train, slice(held, None)), _rows(train, slice(held))))
        else:
            held_out = _split(data.test_images[test], data.test_labels[test], degrees, rng)
            phases.append(Phase(train, held_out))
    return phases


def _split(
    images: mnist.Bytes, labels: mnist.Bytes, degrees: int, rng: np.random.Generator
) -> Split:
    turned = rotate(images, degrees).astype(np.float32) / np.float32(255)
    noisy = background_noise(turned, rng)
    flat = torch.from_numpy(noisy.reshape(len(noisy), -1))
    return Split(flat, torch.from_numpy(labels.astype(np.int64)))


def _rows(split: Split, rows: slice) -> Split:
    return Split(split.images[rows], split.labels[rows])


def run(make: Make, phases: Sequence[Phase], protocol: Protocol, seed: int) -> Curves:
    """Train through all phases and return the curves; the same seed gives the same curves."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(28 * 28, 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = make(model)
    shown = _central_weights(generator)
    curves = Curves()
    for phase in phases:
        for _ in range(protocol.epochs):
            order = torch.randperm(len(phase.train.labels), generator=generator)
            for rows in torch.split(order, protocol.batch):
                optimizer.zero_grad()
                logits = model(phase.train.images[rows])
                loss = nn.functional.cross_entropy(logits, phase.train.labels[rows])
                torch.autograd.backward(loss)
                optimizer.step()
            _record(curves, model, optimizer, phase.held_out, shown)
    return curves


def _central_weights(generator: torch.Generator) -> Tensor:
    """Return flat indices into the weights [10, 784] of some pixels in the middle 14 × 14."""
    cells = torch.randint(7, 21, (2, SHOWN_GAINS), generator=generator)
    classes = torch.randint(10, (SHOWN_GAINS,), generator=generator)
    return classes * 784 + cells[0] * 28 + cells[1]


@torch.no_grad()
def _record(
    curves: Curves,
    model: nn.Linear,
    optimizer: torch.optim.Optimizer,
    held_out: Split,
    shown: Tensor,
) -> None:
    correct = model(held_out.images).argmax(1) == held_out.labels
    curves.accuracy.append(float(correct.double().mean()))
    if isinstance(optimizer, Funnel):
        for name, parameter in model.named_parameters():
            scale = optimizer.state[parameter]["log_scale"].exp()
            curves.scales.setdefault(name, []).append(float(scale))
        log_gain = optimizer.state[model.weight]["log_gain"].flatten()
        curves.gains.append(log_gain[shown].exp().tolist())


def select(
    grid: Sequence[Setting], data: mnist.MNIST, protocol: Protocol, name: str
) -> dict[Setting, float]:
    """Return the mean held-out accuracy of every setting on the selection seed."""
    phases = make_phases(data, protocol, SELECTION_SEED, validate=True)
    return {
        setting: statistics.fmean(run(setting.make, phases, protocol, SELECTION_SEED).accuracy)
        for setting in tqdm(grid, desc=f"selecting {name}", file=sys.stderr)
    }


def epochs_to_reach(level: float, accuracy: Sequence[float]) -> int:
    """Return the first epoch (from 1) that reaches ``level``, or one past the end if none does."""
    return next((i for i, a in enumerate(accuracy, 1) if a >= level), len(accuracy) + 1)


def table(results: dict[str, list[Curves]], chosen: dict[str, Setting], protocol: Protocol) -> str:
    """Return a Markdown table of means and standard deviations over the report seeds.

    The last columns count the epochs after each shift until the accuracy reaches the level at which
    the first optimizer of ``results`` ends that phase with the same seed.
    """
    turns = [f"{degrees}°" for degrees in protocol.rotations]
    baseline, *_ = results
    header = ["optimizer", "setting", *(f"end of {t}" for t in turns), "mean of all epochs"]
    header += [f"epochs at {t} to where {baseline} ends" for t in turns[1:]]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    ends = [[c[-1] for c in _phase_curves(r.accuracy, protocol)] for r in results[baseline]]
    for name, runs in results.items():
        parts = [_phase_curves(r.accuracy, protocol) for r in runs]
        columns = [[p[i][-1] for p in parts] for i in range(len(turns))]
        columns.append([statistics.fmean(r.accuracy) for r in runs])
        cells = [_mean_and_spread(c, ".3f") for c in columns]
        for i in range(1, len(turns)):
            reached = [epochs_to_reach(e[i], p[i]) for e, p in zip(ends, parts, strict=True)]
            cells.append(_mean_and_spread(reached, ".0f"))
        lines.append("| " + " | ".join([name, str(chosen[name]), *cells]) + " |")
    return "\n".join(lines)


def _phase_curves(accuracy: Sequence[float], protocol: Protocol) -> list[Sequence[float]]:
    starts = range(0, len(accuracy), protocol.epochs)
    return [accuracy[s : s + protocol.epochs] for s in starts]


def _mean_and_spread(values: Sequence[float], form: str) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{form}} ± {spread:{form}}"


def sensitivity(scores: dict[str, dict[Setting, float]]) -> str:
    """Return a Markdown table: the best selection score at each learning rate."""
    rates = sorted({setting.lr for grid in scores.values() for setting in grid})
    lines = ["| mean accuracy at lr | " + " | ".join(f"{r:g}" for r in rates) + " |"]
    lines.append("|---" * (len(rates) + 1) + "|")
    for name, grid in scores.items():
        best = [max(a for s, a in grid.items() if s.lr == r) for r in rates]
        lines.append(f"| {name} | " + " | ".join(f"{a:.3f}" for a in best) + " |")
    return "\n".join(lines)


def plot(results: dict[str, list[Curves]], protocol: Protocol, path: Path) -> None:
    """Write a PNG of three panels: accuracy, scales and gains.

    Accuracy is the mean and range over the seeds; scales and gains are those of the first seed.
    """
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 8.5), layout="constrained")
        accuracy, scales, gains = panels = figure.subplots(3, 1, sharex=True)
        for (name, runs), colour in zip(results.items(), COLOURS, strict=True):
            curves = np.array([r.accuracy for r in runs])
            epochs = np.arange(1, curves.shape[1] + 1)
            accuracy.plot(epochs, curves.mean(0), color=colour, label=name)
            accuracy.fill_between(epochs, curves.min(0), curves.max(0), color=colour, alpha=0.2)
            if runs[0].gains:
                for (tensor, values), line in zip(runs[0].scales.items(), ("-", "--"), strict=True):
                    scales.plot(epochs, values, line, color=colour, label=tensor)
                gains.plot(epochs, np.array(runs[0].gains), linewidth=0.9)
        accuracy.set_ylabel("held-out accuracy")
        accuracy.legend(loc="lower right", frameon=False)
        scales.set_ylabel("step-size scale s")
        scales.legend(loc="lower left", frameon=False)
        gains.set_ylabel("gains p of ten weights")
        in_two = protocol.images == 2 * protocol.batch
        gains.set_xlabel("epoch (2 steps each)" if in_two else "epoch")
        for axes in (scales, gains):
            axes.set_yscale("log")
            axes.axhline(1.0, color="0.8", linewidth=0.8, zorder=0)
        above = {"ha": "center", "transform": accuracy.get_xaxis_transform()}
        for number, degrees in enumerate(protocol.rotations):
            start = number * protocol.epochs
            accuracy.text(start + protocol.epochs / 2, 1.02, f"{degrees}°", **above)
            for axes in panels if number else ():
                axes.axvline(start + 0.5, color="0.6", linestyle=":", linewidth=1)
        figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """Select the settings, run the report seeds, print the tables and write the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m funnel.experiments.figure3",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    protocol, add = Protocol(), parser.add_argument
    add("--out", type=Path, default=Path("figure3.png"), help="write the figure (PNG) here")
    add("--json", type=Path, help="write all curves here")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="report these seeds")
    add("--images", type=int, default=protocol.images, help="per phase")
    add("--batch", type=int, default=protocol.batch)
    add("--epochs", type=int, default=protocol.epochs, help="per phase")
    add("--test-images", type=int, default=protocol.test_images)
    args = parser.parse_args(argv)
    protocol = Protocol(
        images=args.images, batch=args.batch, epochs=args.epochs, test_images=args.test_images
    )
    if not 10 <= args.images <= 20_000 or min(args.batch, args.epochs, args.test_images) < 1:
        parser.error("--images must be 10 to 20,000, the other counts at least 1")
    if homeless := [p for p in (args.out, args.json) if p and not p.parent.is_dir()]:
        parser.error(f"the folder of {homeless[0]} does not exist; create it first")
    if SELECTION_SEED in args.seeds:
        parser.error(f"seed {SELECTION_SEED} is for the selection; report other seeds")
    try:
        data = mnist.load()
    except FunnelError as error:
        sys.stderr.write(f"{error}\n")
        return 1

    grids = {
        "AdaGrad": [Setting(lr) for lr in LEARNING_RATES],
        "Funnel(AdaGrad)": [
            Setting(*rates) for rates in product(LEARNING_RATES, GAIN_RATES, SCALE_RATES)
        ],
    }
    scores = {name: select(grid, data, protocol, name) for name, grid in grids.items()}
    chosen = {name: max(grid, key=lambda s: grid[s]) for name, grid in scores.items()}
    results: dict[str, list[Curves]] = {name: [] for name in grids}
    for seed in tqdm(args.seeds, desc="reporting", file=sys.stderr):
        phases = make_phases(data, protocol, seed, validate=False)
        for name, setting in chosen.items():
            results[name].append(run(setting.make, phases, protocol, seed))

    print(f"{table(results, chosen, protocol)}\n\n{sensitivity(scores)}")
    plot(results, protocol, args.out)
    if args.json:
        args.json.write_text(json.dumps({n: [asdict(r) for r in rs] for n, rs in results.items()}))
    sys.stderr.write(f"wrote {args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
