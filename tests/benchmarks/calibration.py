"""Log loss and calibration error of the service's probabilities, as they come and calibrated.

    python -m tests.benchmarks.calibration --data FOLDER

FOLDER holds elec2.csv.gz and weather.csv.gz; without it they are not run. Each stream is recorded
once into --recorded, which takes most of the time, and read from there later: batches of 100
examples of the whole stream, and of 10 of its first third. ECE is that of the predicted class, of
two classes that of class 1, in 15 bins of equal mass. Platt is what the mixture of both hedges.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from service.commands.comparisons.evaluation import CPU
from service.fold.calibration import Calibration, scaled_by
from tests.benchmarks.parts.recorded import Recorded, record

STREAMS = ("abrupt", "recurring", "gradual", "stationary", "sea", "agrawal", "churn", "clicks")
FILES = ("elec2", "weather")
BINS = 15
EXAMPLES = {10: 20_000, 100: 60_000}
"""Examples of a stream at most, by the size of a batch."""
Numbers = npt.NDArray[np.float64]


def ece(found: Recorded) -> float:
    """Return the expected calibration error of recorded probabilities, in BINS of equal mass."""
    is_binary = found.probabilities.shape[1] == 2
    watched = 1 if is_binary else found.probabilities.argmax(axis=1)
    rows = np.arange(len(found.labels))
    said = found.probabilities[rows, watched].astype(float)
    came = (found.labels == watched).astype(float)
    parts = np.array_split(np.argsort(said, kind="stable"), BINS)
    return float(sum(abs((said[i] - came[i]).sum()) for i in parts) / len(rows))


def replayed(found: Recorded) -> tuple[Recorded, Recorded]:
    """Return what Platt scaling alone, and what the service would have answered."""
    classes = found.probabilities.shape[1]
    calibration, yes = Calibration(classes, CPU, levels=True), torch.tensor(True)
    given, labels = torch.from_numpy(found.probabilities), torch.from_numpy(found.labels)
    alone, answered = [], []
    for p, y in zip(given.split(found.size), labels.split(found.size), strict=True):
        predicted = p.argmax(dim=1)
        scaled, weight = scaled_by(classes, p, predicted, calibration.answer), calibration.answer[2]
        alone.append(scaled.scaled)
        answered.append(weight * scaled.scaled + (1 - weight) * scaled.given)
        calibration.learn(p, predicted, y, yes, yes)
        if len(answered) % 50 == 0:
            calibration.scores.settle()
    one, other = (torch.cat(part).float().numpy() for part in (alone, answered))
    return (
        Recorded(found.name, found.size, one, found.labels),
        Recorded(found.name, found.size, other, found.labels),
    )


def line(name: str, found: Recorded) -> str:
    """Return a row of the table."""
    each = [found, *replayed(found)]
    numbers = [f(one) for f in (_loss, ece) for one in each]
    return f"| {name}, {found.size} | " + " | ".join(f"{x:.4f}" for x in numbers) + " |"


def _loss(found: Recorded) -> float:
    return float(found.losses.mean())


def main(show: Callable[[str], object] = sys.stdout.write) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", nargs="+", default=[*STREAMS, *FILES], metavar="NAME")
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 10], metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--examples", type=int, metavar="N", help="of each stream at most")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of the files")
    parser.add_argument("--recorded", type=Path, default=Path("recorded"), metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.recorded.mkdir(exist_ok=True)
    show("| stream, batch | log loss | Platt | answered | ECE | Platt | answered |\n|" + "---|" * 7)
    for name in options.streams:
        if name in FILES and options.data is None:
            continue
        for size in options.sizes:
            path = options.recorded / f"{name}-{size}-{options.seed}.npz"
            if not path.exists():
                most = options.examples or EXAMPLES.get(size, 60_000)
                record(name, size, options.seed, most, options.data or Path()).save(path)
            show(f"\n{line(name, Recorded.load(path))}")
    show("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
