"""A rehearsal of the compiled loops that count: they are compiled, and their bits compared with
those of the torch operators that are their twins. Where one differs, operators run instead.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from funnel.compiled import rehearsed
from service.fold.calibration import Calibration, calibrated
from service.fold.scoring.classification import LOOPS
from service.fold.scoring.floors import Floors
from service.fold.scoring.regression import NumberFloors, fresh_scores

EXAMPLES = 80
QUANTILES = (0.1, 0.5, 0.9)


def rehearse() -> str:
    """Choose the code that counts outcomes in this process, and return which, in words.

    It compiles for some seconds where no process has compiled on this disk before.
    """
    classes = [partial(_counted, 2, 2, True), partial(_counted, 5, 8, False)]
    return rehearsed(LOOPS, [*classes, partial(_measured, None), partial(_measured, QUANTILES)])


def _counted(classes: int, room: int, levels: bool) -> dict[str, Tensor]:
    """Return the state of floors and of a calibration that have learned a little."""
    cpu = torch.device("cpu")
    floors, calibration = Floors(classes, cpu, room), Calibration(classes, cpu, room, levels)
    generator = torch.Generator().manual_seed(0)
    yes = torch.tensor(True)
    losses, answered = list[Tensor](), list[Tensor]()
    for _ in range(4):
        odds = 4.0 * torch.randn(EXAMPLES, room, generator=generator)
        odds[:, classes:] = -torch.inf
        labels = torch.randint(classes, (EXAMPLES,), generator=generator)
        weights = torch.rand(EXAMPLES, generator=generator)
        answers = odds.softmax(dim=1)
        guesses = answers.argmax(dim=1)
        answered.append(calibrated(classes, answers, guesses, calibration.answer))
        calibration.learn(answers, guesses, labels, yes, yes, weights)
        losses.append(floors.observe(labels, yes, yes))
    named = {f"floors.{k}": v for k, v in floors.tensors().items()}
    named |= {f"calibration.{k}": v for k, v in calibration.tensors().items()}
    return named | {"losses": torch.stack(losses), "answered": torch.stack(answered)}


def _measured(quantiles: Sequence[float] | None) -> dict[str, Tensor]:
    """Return the state of scores and floors of numbers that have learned a little."""
    cpu, yes = torch.device("cpu"), torch.tensor(True)
    floors, scores = NumberFloors(cpu, quantiles), fresh_scores(quantiles, cpu)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        answers = torch.randn(EXAMPLES, 3, generator=generator).sort(dim=1).values
        targets = 3.0 * torch.randn(EXAMPLES, generator=generator)
        std = torch.rand(EXAMPLES, generator=generator)
        values = answers[:, 1] if quantiles is None else answers
        scores.update(values, std, targets, (answers[:, 1] - targets).abs(), yes)
        floors.observe(targets, yes, yes)
    named = {f"number_floors.{k}": v for k, v in floors.tensors().items()}
    return named | {f"numbers.{k}": v for k, v in scores.tensors().items()}
