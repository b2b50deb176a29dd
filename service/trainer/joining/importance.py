"""Importance weights of questions that are learned as negatives before their labels can have come.

Each question is learned with the negative label at once, and again with the positive one if that
comes. Such a stream shows a positive with probability p / (1 + p) where p is its true one. The
weights of the fake-negative weighted loss undo that: 1 + p for a positive, and (1 - p) (1 + p) for
a negative, where p is the probability that the model gave, held constant. S. I. Ktena et al.,
'Addressing Delayed Feedback for Continuous Training with Neural Networks in CTR Prediction' (2019),
arXiv 1907.06558. Both weights of a question take the p of its answer: the loss is least at the true
probability if p is that, and from any p below 1 repeated updates lead there.
"""

from service.log.labels import Label, Result
from service.log.questions import Questions
from service.trainer.joining.examples import Rules

UNKNOWN = 0.5
"""Probability of a positive where the model gave none, since it knew no negative yet."""


def importance(
    result: Result, questions: Questions, row: int, negative: Label, rules: Rules
) -> float:
    """Return the weight of a question that is learned with a label.

    Args:
        result: the label is ``ASSUMED``, or ``CORRECTED``; the weight of any other is 1.
        questions: of its entry, with answers of probabilities.
        row: of the question.
        negative: the label that is assumed.
        rules: of the model.
    """
    if result not in (Result.ASSUMED, Result.CORRECTED):
        return 1.0
    given, which, p = questions.answers[row], rules.class_of(negative), UNKNOWN
    if which is not None and which < len(given) and 0 <= given[which] <= 1:
        p = 1.0 - float(given[which])
    return 1.0 + p if result == Result.CORRECTED else (1.0 - p) * (1.0 + p)
