"""The family of trees: three boosted forests, on a short, a long and a remembering window.

- *short* has the newest 1,000 examples. Page's test [E. S. Page, 'Continuous inspection schemes',
  Biometrika 41, 1954] restarts it when it is worse than knowing nothing by LIMIT nats.
- *long* has the newest 4,096. When Page's sum of its losses over those of *short* passes LIMIT, it
  becomes a copy of *short* [S. Bach, M. Maloof, 'Paired learners for concept drift', ICDM 2008].
- *memory* has those and a sample of all before them, more trees that fade more slowly, and never
  restarts.

Trees see the numbers as they came and, for at most MOST_LAGS classes, the frequencies of the latest
labels; where numbers are predicted, their recent means.
"""

import torch
from torch import Tensor
from torch.nn import functional

from funnel.families.boosting import Boosted, Window
from funnel.families.interface import MOST_LAGS, Examples
from funnel.families.memory import NEWEST, Memory, Moved

SHORT = Window(newest=1_000, rows=1_000)
LONG = Window(newest=NEWEST)
REMEMBERING = Window(newest=NEWEST, remembers=True, trees=200, fade=0.005)
WINDOWS = {"short": SHORT, "long": LONG, "memory": REMEMBERING}
LIMIT = 30.0
"""Nats of evidence for a change."""
MATURE = 500
"""Examples after which *short* may be found worse than knowing nothing."""
NUMBER = 1
"""Number of the family, for draws."""


class Trees:
    """Three forests.

    Args:
        memory: holds the examples: MOST_LAGS frequencies, then their numbers.
        used: which of these numbers there are, int64; the memory may have room for more.
    """

    names = tuple(f"trees/{name}" for name in WINDOWS)

    def __init__(self, memory: Memory, used: Tensor) -> None:
        self.outcome, width = memory.outcome, memory.rows.shape[1]
        usable = torch.cat([torch.arange(self.outcome.lags), MOST_LAGS + used])
        self.forests = {name: Boosted(window, memory, usable) for name, window in WINDOWS.items()}
        self.importances = torch.full((width,), 1.0 / width, device=memory.rows.device)
        """Gains of the columns in all trees of late, fp32 [D]."""
        self.excess = torch.zeros(2, dtype=torch.float64)
        """Evidence that *long* is worse than *short*, and *short* than knowing nothing, in nats."""

    def tensors(self) -> dict[str, Tensor]:
        """Implement `Family.tensors`."""
        named = {
            f"{name}.{key}": tensor
            for name, boosted in self.forests.items()
            for key, tensor in boosted.tensors().items()
        }
        return named | {"importances": self.importances, "excess": self.excess}

    def logits(self, rows: Tensor) -> Tensor:
        """Return the outputs of the forests without their offsets, fp32 [3, n, A].

        Args:
            rows: as the memory holds them, fp32 [n, D].
        """
        return torch.stack([boosted.logits(rows) for boosted in self.forests.values()])

    @property
    def offsets(self) -> Tensor:
        """Offsets of the forests, fp32 [3, A]."""
        return torch.stack([boosted.offset for boosted in self.forests.values()])

    def learn(self, examples: Examples, moved: Moved, logits: Tensor) -> None:
        """Learn a batch that has come into the memory.

        Args:
            examples: the batch.
            moved: what it moved there.
            logits: as `logits` returned them before, [3, n, A].
        """
        outcome, labels, n = self.outcome, examples.labels, len(examples.labels)
        short, long, _ = self.forests.values()
        answers = outcome.answers(logits + self.offsets[:, None])
        each = outcome.losses(answers, labels, outcome.spread(long.prior))
        losses = (each * examples.weights).sum(dim=1).tolist()
        ignorance = outcome.ignorance(short.prior, labels, examples.weights)
        excess = self.excess.tolist()
        excess[0] = max(0.0, excess[0] + losses[1] - losses[0])
        worse = losses[0] - ignorance
        if excess[1] > 0 or worse < 0 or int(short.seen) > MATURE:
            excess[1] = max(0.0, excess[1] + worse)
        generator = examples.generator(NUMBER)
        for boosted, own in zip(self.forests.values(), logits, strict=True):
            boosted.learn(moved, own, self.importances, generator)
        if excess[1] > LIMIT:
            excess[1] = 0.0
            short.restart(min(n, 100))
        if excess[0] > LIMIT and short.counts[0] < long.counts[0]:
            excess[0] = 0.0
            long.become(short)
        self.excess.copy_(torch.tensor(excess, dtype=torch.float64))

    def rescale(self, ratio: Tensor, shift: Tensor) -> None:
        """Continue with numbers in another unit."""
        for boosted in self.forests.values():
            boosted.rescale(ratio, shift)

    def skip(self, moved: Moved) -> None:
        """Note a batch that has come into the memory, and grow no trees.

        Args:
            moved: what it moved there.
        """
        for boosted in self.forests.values():
            boosted.skip(moved)


def with_lags(raw: Tensor, lags: Tensor) -> Tensor:
    """Return inputs after the statistics of the latest labels, fp32 [n, MOST_LAGS + d]."""
    own = functional.pad(lags, (0, MOST_LAGS - len(lags)))
    return torch.cat([own.expand(len(raw), -1), raw], dim=1)
