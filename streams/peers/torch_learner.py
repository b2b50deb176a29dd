"""Logistic regression under any PyTorch optimizer, as a learner to evaluate."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from streams.batch import Batch, Features, Labels
from streams.prequential import Probabilities

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


class TorchLearner:
    """Softmax regression from zero weights; one step a batch on its mean cross-entropy.

    Args:
        width: number of features.
        classes: number of classes.
        make_optimizer: from the parameters to an optimizer; one with ``train`` and ``eval`` methods
            is switched between them, as the schedule-free ones need.
        resets: numbers of examples after which the optimizer restarts, before the batch that holds
            the next one; the weights stay.
    """

    def __init__(
        self, width: int, classes: int, make_optimizer: MakeOptimizer, resets: Sequence[int] = ()
    ) -> None:
        self.model = nn.Linear(width, classes)
        for parameter in self.model.parameters():
            nn.init.zeros_(parameter)
        self._make_optimizer = make_optimizer
        self.optimizer = make_optimizer(self.model.parameters())
        self._resets = sorted(resets)
        self._learned = 0

    def predict(self, features: Features) -> Labels:
        """Return the predicted label of each row of fp32 [n, d], int64 [n]."""
        return self.answer(features)[0]

    @torch.no_grad()
    def answer(self, features: Features) -> tuple[Labels, Probabilities]:
        """Return labels as `predict` does, and their probabilities, fp64 [n, classes]."""
        self._switch("eval")
        logits = self.model(torch.from_numpy(features))
        labels: Labels = logits.argmax(dim=1).numpy()
        return labels.astype(np.int64, copy=False), logits.double().softmax(dim=1).numpy()

    def learn(self, batch: Batch) -> None:
        """Learn a batch."""
        while self._resets and self._resets[0] < self._learned + len(batch):
            del self._resets[0]
            self.optimizer = self._make_optimizer(self.model.parameters())
        self._switch("train")
        logits = self.model(torch.from_numpy(batch.features))
        self.optimizer.zero_grad()
        F.cross_entropy(logits, torch.from_numpy(batch.labels)).backward()
        self.optimizer.step()
        self._learned += len(batch)

    def _switch(self, mode: str) -> None:
        if switch := getattr(self.optimizer, mode, None):
            switch()
