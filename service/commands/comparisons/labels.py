"""The task that the labels of a file show: classes, or numbers to predict."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from service.fold.schema.cells import label_numbers
from service.fold.task import CLASSES, Task

FEW_FRACTIONS, FEW_WHOLE = 10, 50
"""Different numbers that may be classes: grades in halves, and codes."""


def task_of(labels: Sequence[str]) -> tuple[Task, str]:
    """Return the task that all different labels of a file show, and why.

    Labels are numbers to predict if all are numbers, and either some have a fraction and there are
    more than FEW_FRACTIONS, or all are whole, there are more than FEW_WHOLE, and they are not
    exactly 0, 1, … or 1, 2, …, as classes are numbered.

    >>> str(task_of([f"{k}.5" for k in range(20)])[0])
    'regression'

    Args:
        labels: different texts.
    """
    numbers = label_numbers(pa.array(labels, pa.string()))
    if not len(numbers) or np.isnan(numbers).any():
        return CLASSES, "some labels are no numbers"
    whole, count = bool((numbers == np.rint(numbers)).all()), len(np.unique(numbers))
    kind = "whole numbers" if whole else "numbers with fractions"
    why = f"the labels are {count:,} different {kind}"
    if count <= (FEW_WHOLE if whole else FEW_FRACTIONS):
        return CLASSES, why
    first, last = float(numbers.min()), float(numbers.max())
    if whole and first in (0.0, 1.0) and last - first + 1 == count:
        return CLASSES, why
    return Task("regression"), why
