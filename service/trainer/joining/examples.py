"""Examples of questions and the labels that they have met."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.log.entries import Shape
from service.log.labels import Join, Label
from service.log.position import EntryId
from service.log.questions import Questions
from streams.batch import Batch, Labels
from streams.examples import AnyBatch, joined
from streams.rows.labels import label_text, label_texts
from streams.rows.rows import Chunk, Rows, merged


@dataclass(frozen=True)
class Rules:
    """The examples that a model takes."""

    shape: Shape | None
    """Shape of dense features; None for rows."""
    check: Callable[[Rows], None]
    """Raises InvalidBatchError if rows do not fit the schema."""
    names: Sequence[str]
    """Labels of rows by class."""

    def label_of(self, text: str) -> Label | None:
        """Return the label that is written as a text; None if the model has no such label."""
        if self.shape is None:
            return label_text(text)
        try:
            label = float(np.float32(text)) if self.is_numeric else int(text)
        except ValueError:
            return None
        is_known = math.isfinite(label) if self.is_numeric else 0 <= label < self.shape[1]
        return label if is_known else None

    def class_of(self, label: Label) -> int | None:
        """Return the class of a label; None if it has none yet."""
        if self.shape is not None:
            return int(label)
        return self.names.index(str(label)) if label in self.names else None

    @property
    def is_numeric(self) -> bool:
        """True if labels of dense features are numbers."""
        return self.shape is not None and not self.shape[1]


def batch_of(joins: Sequence[Join]) -> AnyBatch | None:
    """Return the examples of labels that have met their questions; None without any."""
    found = [join.example for join in joins if join.example is not None]
    if not found:
        return None
    batch = joined(found)
    return merged(batch) if isinstance(batch, Rows) else batch


def with_example(join: Join, questions: Questions, rules: Rules, is_new: bool) -> Join:
    """Return a label with the question that it meets.

    Args:
        join: with a place.
        questions: of its entry.
        rules: of the model.
        is_new: whether they are checked, and not repeated.

    Raises:
        InvalidBatchError: the model cannot learn the question with the label.
    """
    assert join.place is not None, "it has a question"
    row, label = join.place.row, join.label
    inputs, answered = questions.part(row), questions.answered[row]
    weight = join.weight * join.factor
    weights = None if weight == 1.0 else np.array([weight], np.float32)
    is_right: bool | None = None
    example: AnyBatch
    if isinstance(inputs, Rows):
        [chunk] = inputs.chunks
        example = Rows((Chunk(chunk.own, label_texts([label], 1), weights),))
        if is_new:
            rules.check(example)
        if type(answered) is int:
            is_right = answered < len(rules.names) and rules.names[answered] == label
    else:
        if rules.is_numeric:
            own: Labels = np.array([label], np.float32)
        else:
            own, is_right = np.array([label], np.int64), answered == label
        example = Batch(inputs, own, weights)
    return Join(*join[:-2], is_right, example)


def again(join: Join, questions: Mapping[EntryId, Questions], rules: Rules) -> Join:
    """Return a recorded decision with its question, if it has one.

    Raises:
        KeyError, IndexError, InvalidBatchError: the question is not what was recorded.
    """
    if join.place is None:
        return join
    own = questions[join.place.entry]
    join = join._replace(hash=own.hash_of(join.place.row))
    return with_example(join, own, rules, is_new=False)
