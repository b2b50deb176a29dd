"""Examples of either kind: dense features, or rows with named columns."""

from collections.abc import Sequence

from streams.batch import Batch, Features, concatenate, join_features
from streams.rows.rows import Rows, join

AnyBatch = Batch | Rows
"""Labelled examples."""
AnyInputs = Features | Rows
"""Examples without labels."""


def joined(parts: Sequence[AnyBatch]) -> AnyBatch:
    """Return batches of one kind after one another.

    Raises:
        TypeError: their kinds differ; a model takes one kind.
    """
    dense = [part for part in parts if isinstance(part, Batch)]
    if len(dense) == len(parts):
        return concatenate(dense)
    rows = [part for part in parts if isinstance(part, Rows)]
    if dense:
        raise TypeError("dense features and rows cannot be joined")
    return join(rows)


def joined_inputs(parts: Sequence[AnyInputs]) -> AnyInputs:
    """Return inputs of one kind after one another.

    Raises:
        TypeError: their kinds differ; a model takes one kind.
    """
    rows = [part for part in parts if isinstance(part, Rows)]
    if len(rows) == len(parts):
        return join(rows)
    if rows:
        raise TypeError("dense features and rows cannot be joined")
    return join_features([part for part in parts if not isinstance(part, Rows)])


def part_of(inputs: AnyInputs, start: int, stop: int) -> AnyInputs:
    """Return the inputs from ``start`` up to ``stop``, without a copy."""
    return inputs.part(start, stop) if isinstance(inputs, Rows) else inputs[start:stop]
