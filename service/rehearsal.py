"""A rehearsal of the compiled loops that count: they are compiled, and their bits compared with
those of the torch operators that are their twins. Where one differs, operators run instead.
"""

from functools import partial

import torch
from torch import Tensor

from funnel.compiled import rehearsed
from service.fold.calibration import Calibration
from service.fold.scoring.classification import LOOPS
from service.fold.scoring.floors import Floors

EXAMPLES = 80


def rehearse() -> str:
    """Choose the code that counts outcomes in this process, and return which, in words.

    It compiles for some seconds where no process has compiled on this disk before.
    """
    return rehearsed(LOOPS, [partial(_counted, 2, 2), partial(_counted, 5, 8)])


def _counted(classes: int, room: int) -> dict[str, Tensor]:
    """Return the state of floors and of a calibration that have learned a little."""
    cpu = torch.device("cpu")
    floors, calibration = Floors(classes, cpu, room), Calibration(classes, cpu, room)
    generator = torch.Generator().manual_seed(0)
    yes = torch.tensor(True)
    losses = []
    for _ in range(4):
        odds = 4.0 * torch.randn(EXAMPLES, room, generator=generator)
        odds[:, classes:] = -torch.inf
        labels = torch.randint(classes, (EXAMPLES,), generator=generator)
        weights = torch.rand(EXAMPLES, generator=generator)
        answers = odds.softmax(dim=1)
        calibration.learn(answers, answers.argmax(dim=1), labels, yes, yes, weights)
        losses.append(floors.observe(labels, yes, yes))
    named = {f"floors.{k}": v for k, v in floors.tensors().items()}
    named |= {f"calibration.{k}": v for k, v in calibration.tensors().items()}
    return named | {"losses": torch.stack(losses)}
