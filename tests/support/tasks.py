"""One stream of examples for every task: its labels are made of those of classes."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from service.fold.task import Task
from streams.batch import Batch

TASKS = ("multiclass", "binary", "regression", "quantile:0.1,0.5,0.9")


def settings_of(task: str, classes: int) -> dict[str, Any]:
    """Return the settings of a service that learns a task.

    Args:
        task: as `service.fold.task.Task.parse` takes it.
        classes: of the examples, if they are not of two.
    """
    if Task.parse(task).is_numeric:
        return {"task": task}
    return {"task": task, "classes": 2 if task == "binary" else classes}


def of_task(task: str, batch: Batch) -> Batch:
    """Return examples with labels as a task has them.

    Classes are odd or even of two. A number is a class and a part of the mean of the features, in a
    unit that is another one for each eighth example, so that scales move while they are learned.
    """
    if task == "multiclass":
        return batch
    if task == "binary":
        return Batch(batch.features, batch.labels % 2)
    mean = batch.features.astype(np.float32).mean(axis=1)
    unit = np.where(batch.labels % 8 == 7, np.float32(1_000.0), np.float32(10.0))
    return Batch(batch.features, (unit * (batch.labels + mean)).astype(np.float32))


def all_of_task(task: str, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches with labels as a task has them."""
    return (of_task(task, batch) for batch in batches)
