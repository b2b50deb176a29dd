"""The task that the labels of a file show: classes, or numbers to predict."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from service.fold.schema.cells import label_numbers
from service.fold.task import CLASSES, Task

FEW_FRACTIONS, FEW_WHOLE = 10, 50
"""Different numbers that may be classes: grades in halves, and codes."""
FEW_NONE = 0.1
"""Share of the labels that are no numbers by mistake, where the others are numbers."""


def task_of(labels: Sequence[str]) -> tuple[Task, str]:
    """Return the task that all different labels of a file show, and why, if that may surprise.

    Labels are numbers to predict if all are numbers, and either some have a fraction and there are
    more than FEW_FRACTIONS, or all are whole, there are more than FEW_WHOLE, and they are not
    exactly 0, 1, … or 1, 2, …, as classes are numbered.

    >>> str(task_of([f"{k}.5" for k in range(20)])[0])
    'regression'

    Args:
        labels: different texts.
    """
    numbers = label_numbers(pa.array(labels, pa.string()))
    is_none = np.isnan(numbers)
    if not len(numbers) or is_none.any():
        return CLASSES, _of_almost_numbers(labels, is_none)
    whole, count = bool((numbers == np.rint(numbers)).all()), len(np.unique(numbers))
    kind = "whole numbers" if whole else "numbers with fractions"
    why = f"the labels are {count:,} different {kind}"
    if count <= (FEW_WHOLE if whole else FEW_FRACTIONS):
        return CLASSES, ""
    first, last = float(numbers.min()), float(numbers.max())
    if whole and first in (0.0, 1.0) and last - first + 1 == count:
        return CLASSES, ""
    return Task("regression"), why


def _of_almost_numbers(labels: Sequence[str], is_none: npt.NDArray[np.bool_]) -> str:
    """Return why labels are classes where few of many are no numbers; empty where many are none.

    Args:
        labels: different texts.
        is_none: which of them are no numbers, bool [n].
    """
    count = int(is_none.sum())
    if len(labels) <= FEW_WHOLE or count > FEW_NONE * len(labels):
        return ""
    first = labels[int(is_none.argmax())][:40]
    return (
        f"{count:,} of its {len(labels):,} different labels are no finite fp32 numbers, the first "
        f"of them {first!r}"
    )
