"""Answers of a family that a user adds, as the mixture takes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from funnel.families.interface import Family
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Classes, Outcome


class Misfit(ValueError):
    """A family does not keep to its interface; the message says how, without its name."""


class Maker(Protocol):
    """It makes the families of one name."""

    @property
    def name(self) -> str:
        """The name, with which the names of its experts begin."""
        ...

    @property
    def errors(self) -> int:
        """How often its families have raised and were excused, in this process."""
        ...

    def __call__(self, features: int, outcome: Outcome) -> Family:
        """Return a family as it begins, the same each time.

        Args:
            features: d.
            outcome: what it answers.
        """
        ...

    def excuse(self, error: BaseException, when: str) -> None:
        """Log what the family raised. Raise it where the step has to end: where the machine has
        failed, and another try may succeed.

        Args:
            error: as it was caught.
            when: it was raised, in words.
        """
        ...


@contextmanager
def calling() -> Iterator[None]:
    """Let a family be called: without gradients, and with tensors that last."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def answers_of(family: Family, rows: Tensor, outcome: Outcome, unit: Tensor) -> Tensor:
    """Return the answers of a family, fp32 [K, n, A]; an expert that knows nothing has NaN.

    Classes that are closed get the probability 0, the others sum to 1, and quantiles ascend.

    Args:
        family: of a user's.
        rows: fp32 [n, d].
        outcome: what it answers.
        unit: of the numbers that it answers (`unit_of`).

    Raises:
        Misfit: they have another shape or type. The family may raise anything else.
    """
    with calling():
        found = family.answer(rows.clone())
        expected = (len(family.names), len(rows), outcome.outputs)
        if not isinstance(found, Tensor) or found.shape != expected:
            what = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise Misfit(f"answers {what}, expected [experts, rows, outputs] {list(expected)}")
        if found.dtype != torch.float32:
            raise Misfit(f"answers {found.dtype}, expected float32: return answers.float()")
        if isinstance(outcome, Classes):
            shares = torch.where(outcome.is_open, found, 0.0)
            total = shares.sum(dim=2, keepdim=True)
            is_known = torch.isfinite(total) & (total > 0.0) & (shares >= 0.0).all(2, keepdim=True)
            return torch.where(is_known, shares / total, torch.nan)
        present = (found.double() - unit[1]).div_(unit[0]).float()
        return present.sort(dim=2).values if outcome.outputs > 1 else present


def unit_of(outcome: Outcome) -> Tensor:
    """Return the unit of a family that begins, float64 [2]: a and b, where a number y of the
    present unit is a y + b to the family. Classes have none, [0]."""
    return torch.tensor([1.0, 0.0] if isinstance(outcome, Numbers) else [], dtype=torch.float64)
