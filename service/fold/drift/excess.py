"""A test of the excess loss: the model's loss minus that of the `majority` floor, of one batch.

Where classes are rare or labels are noise, the loss of a batch depends most on which labels came.
The floor pays for these too, so they cancel in the difference, and a relation that is reversed
stands out. The test sees changes for the worse only.

Batches are combined into blocks of at least BLOCK examples. A block of m examples with the mean
excess x gives

    z = (x - μ) √m / σ,   y = clip(z · √((1 - ρ) / (1 + ρ)), ±CLIP).

Level μ and scale σ are M-estimates, which no block moves far [P. Huber, 'Robust estimation of a
location parameter', 1964]. They begin as median and deviation of GRACE blocks, in which nothing is
tested, and are averages over HORIZON blocks later. ρ ≥ 0 is the correlation of neighbouring blocks,
which makes the sum of z deviate √((1 + ρ) / (1 - ρ)) times more. μ follows a model that improves,
so that its progress is no evidence.

For each λ of TILTS, the evidence against 'nothing has changed' is an e-process, and

    M ← (1 + M) · exp(λ y) / max(E exp(λ y), exp(λ² / 2)) · exp(-λ SLACK)

is its Shiryaev–Roberts form: the expectation of M after n blocks is at most n while nothing
changes, so that the mean of M over TILTS exceeds LIMIT after at least LIMIT blocks on average
[J. Shin, A. Ramdas, A. Rinaldo, 'E-detectors: a nonparametric framework for sequential change
detection', New England Journal of Statistics in Data Science, 2023]. This needs no distribution,
but the expectation of exp(λ y), of which the mean over HORIZON blocks is taken, or that of a normal
distribution if it is larger. SLACK covers the errors of these estimates. `tests.benchmarks.drift`
counts the false alarms.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from service.fold.drift.detectors import Change, change_at, means_at

NAME = "excess_loss"
BLOCK = 50
"""Least examples of a block."""
GRACE = 20
"""Blocks after a start before a change can be seen."""
HORIZON = 200
"""Blocks that the estimates remember."""
CLIP = 5.0
"""Deviations that a block counts at most."""
WILD = 3.0
"""Deviations that a block counts at most for the estimates."""
LEAST_SCALE = 0.01
"""Nats that an example deviates by at least: smaller changes do not matter."""
MOST_CORRELATION = 0.8
TILTS = (0.5, 1.0, 1.5)
"""λ; the larger are for larger changes."""
SLACK = 0.25
"""Deviations by which the level may be wrong."""
LIMIT = 5_000.0
"""Blocks between two false alarms, on average at least."""
KEPT = 40
"""Newest blocks, among which a change is located."""
SINGLE = 8
"""Numbers of a state but its evidence and its expectations."""
NORMAL = tuple(math.exp(tilt**2 / 2) for tilt in TILTS)
"""E exp(λ z) of a normal distribution."""
PAID = tuple(math.exp(-tilt * SLACK) for tilt in TILTS)


class ExcessLoss:
    """The test, and all that it depends on.

    Args:
        name: of its tensors.
    """

    def __init__(self, name: str = NAME) -> None:
        self._name = name
        self._sum = 0.0
        """Sum of the excess losses of the examples that do not make a block yet, in nats."""
        self._examples = self._correct = 0
        """Counts of these examples."""
        self._blocks: deque[tuple[float, int, float]] = deque(maxlen=KEPT)
        """The newest since the start: mean excess, examples, error rate."""
        self.restart()

    def restart(self) -> None:
        """Forget all but the examples that do not make a block yet."""
        self._count = 0
        """Blocks since the start."""
        self._level = self._correlation = self._previous = 0.0
        self._scale = 1.0
        """σ of single examples, in nats."""
        self._evidence = [0.0] * len(TILTS)
        """M."""
        self._expected = list(NORMAL)
        """Mean of exp(λ y)."""
        self._blocks.clear()

    def update(self, excess: float, correct: int, examples: int) -> Change | None:
        """Take a batch; if it shows a change, return the error rates around it, and start again.

        Args:
            excess: mean loss of the model minus that of the floor, in nats; finite.
            correct: number of right predictions.
            examples: number of examples.
        """
        self._sum += excess * examples
        self._correct += correct
        self._examples += examples
        if self._examples < BLOCK:
            return None
        m = self._examples
        mean, error = self._sum / m, 1.0 - self._correct / m
        self._sum, self._examples, self._correct = 0.0, 0, 0
        self._blocks.append((mean, m, error))
        self._count += 1
        if self._count < GRACE:
            return None
        if self._count == GRACE:
            self._estimate()
            return None
        if not self._test((mean - self._level) * math.sqrt(m) / self._scale, m):
            return None
        excesses, errors = ([block[k] for block in self._blocks] for k in (0, 2))
        self.restart()
        return means_at(errors, change_at(excesses, is_rise=True))

    def _estimate(self) -> None:
        """Take level and scale from the first blocks."""
        self._level = statistics.median(x for x, _, _ in self._blocks)
        off = [abs(x - self._level) * math.sqrt(m) for x, m, _ in self._blocks]
        self._scale = max(1.4826 * statistics.median(off), LEAST_SCALE)

    def _test(self, z: float, m: int) -> bool:
        """Return whether a block of m examples shows a change, and take it into the estimates."""
        rho = min(max(self._correlation, 0.0), MOST_CORRELATION)
        y = _clipped(z * math.sqrt((1 - rho) / (1 + rho)), CLIP)
        share = 1 / min(self._count, HORIZON)
        for k, tilt in enumerate(TILTS):
            gain = math.exp(tilt * y)
            null = max(self._expected[k], NORMAL[k])
            self._evidence[k] = (1 + self._evidence[k]) * gain / null * PAID[k]
            self._expected[k] += (gain - self._expected[k]) / HORIZON
        own = _clipped(z, WILD)
        self._level += share * own * self._scale / math.sqrt(m)
        self._scale = max(self._scale * math.sqrt(1 + share * (own**2 - 1)), LEAST_SCALE)
        self._correlation += (own * self._previous - self._correlation) / HORIZON
        self._previous = own
        return sum(self._evidence) > LIMIT * len(TILTS)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that it depends on: float64 [SINGLE + 2 · tilts], and its blocks [k, 3]."""
        numbers = [
            self._sum, self._examples, self._correct, self._count,
            self._level, self._scale, self._correlation, self._previous,
            *self._evidence, *self._expected,
        ]  # fmt: skip
        blocks = torch.tensor(list(self._blocks), dtype=torch.float64).reshape(-1, 3)
        named = {self._name: torch.tensor(numbers, dtype=torch.float64)}
        return named | {f"{self._name}.blocks": blocks}

    @classmethod
    def load(
        cls, numbers: Sequence[float], blocks: Sequence[Sequence[float]], name: str = NAME
    ) -> "ExcessLoss":
        """Return the test that `tensors` described.

        Args:
            numbers: of the first tensor.
            blocks: of the second.
            name: of the tensors.

        Raises:
            ValueError: there are more or fewer numbers.
        """
        if len(numbers) != SINGLE + 2 * len(TILTS) or len(blocks) > KEPT:
            raise ValueError(f"{NAME} has {len(numbers)} numbers and {len(blocks)} blocks")
        own = cls(name)
        own._blocks.extend((x, int(m), error) for x, m, error in blocks)
        own._sum, examples, correct, count = numbers[:4]
        own._examples, own._correct, own._count = int(examples), int(correct), int(count)
        own._level, own._scale, own._correlation, own._previous = numbers[4:SINGLE]
        own._evidence = list(numbers[SINGLE : SINGLE + len(TILTS)])
        own._expected = list(numbers[SINGLE + len(TILTS) :])
        return own


def _clipped(x: float, most: float) -> float:
    return max(-most, min(most, x))
