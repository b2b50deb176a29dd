"""The family of trees: three boosted forests, on a short, a long and a remembering window.

- *short* has the newest 1,000 examples. Page's test [E. S. Page, 'Continuous inspection schemes',
  Biometrika 41, 1954] restarts it when it is worse than knowing nothing by LIMIT nats.
- *long* has the newest 4,096. When Page's sum of its losses over those of *short* passes LIMIT, it
  becomes a copy of *short* [S. Bach, M. Maloof, 'Paired learners for concept drift', ICDM 2008].
- *memory* has those and a sample of all before them, more trees that fade more slowly, and never
  restarts.

Trees see the numbers as they came and, for at most MOST_LAGS classes, the frequencies of the latest
labels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from funnel.families.boosting import Boosted, Window
from funnel.families.interface import LEAST_ODDS, Examples
from funnel.families.memory import NEWEST, Memory, Moved

SHORT = Window(newest=1_000, rows=1_000)
LONG = Window(newest=NEWEST)
REMEMBERING = Window(newest=NEWEST, remembers=True, trees=200, fade=0.005)
WINDOWS = {"short": SHORT, "long": LONG, "memory": REMEMBERING}
LIMIT = 30.0
"""Nats of evidence for a change."""
MATURE = 500
"""Examples after which *short* may be found worse than knowing nothing."""
MOST_LAGS = 16
"""Most classes whose latest frequencies are inputs."""
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
        width, classes = memory.rows.shape[1], len(memory.prior)
        lags = classes if classes <= MOST_LAGS else 0
        usable = torch.cat([torch.arange(lags), MOST_LAGS + used])
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
        """Return the logits of the forests without their priors, fp32 [3, n, C].

        Args:
            rows: as the memory holds them, fp32 [n, D].
        """
        return torch.stack([boosted.logits(rows) for boosted in self.forests.values()])

    @property
    def log_priors(self) -> Tensor:
        """Priors of the forests, fp32 [3, C]."""
        return torch.stack([boosted.log_prior for boosted in self.forests.values()])

    def learn(self, examples: Examples, moved: Moved, logits: Tensor) -> None:
        """Learn a batch that has come into the memory.

        Args:
            examples: the batch.
            moved: what it moved there.
            logits: as `logits` returned them before, [3, n, C].
        """
        labels, n = examples.labels, len(examples.labels)
        answers = (logits + self.log_priors[:, None]).softmax(dim=2)
        chosen = answers.gather(2, labels.expand(len(answers), -1)[:, :, None])[:, :, 0]
        losses = (-chosen.clamp(min=LEAST_ODDS).log() * examples.weights).sum(dim=1).tolist()
        short, long, _ = self.forests.values()
        ignorance = float(examples.weights.sum()) * math.log(max(2, int((short.prior > 0).sum())))
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

    def skip(self, moved: Moved) -> None:
        """Note a batch that has come into the memory, and grow no trees.

        Args:
            moved: what it moved there.
        """
        for boosted in self.forests.values():
            boosted.skip(moved)


def with_lags(raw: Tensor, recent: Tensor) -> Tensor:
    """Return inputs after the frequencies of the latest labels, fp32 [n, MOST_LAGS + d]."""
    lags = recent if len(recent) <= MOST_LAGS else recent[:0]
    own = functional.pad(lags, (0, MOST_LAGS - len(lags)))
    return torch.cat([own.expand(len(raw), -1), raw], dim=1)
