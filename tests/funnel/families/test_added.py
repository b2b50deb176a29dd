"""A family that a user adds, among the others: whatever it answers, the mixture gets what it can
take."""

from collections.abc import Mapping

import pytest
import torch
from torch import Generator, Tensor

from funnel.families import Family
from funnel.families.added.added import Added
from funnel.families.added.answers import Misfit
from funnel.families.added.frozen import Instances
from funnel.families.interface import Examples, Given, Scaling
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Classes, Outcome

CPU = torch.device("cpu")
WIDTH = 3
ROWS = torch.zeros(4, WIDTH)


class Constant:
    """Answers what it holds, which is the mean of the labels once it has learned."""

    names = ("only",)

    def __init__(self, outputs: int) -> None:
        self.held = torch.full((outputs,), 1.0 / outputs)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"held": self.held}

    def answer(self, rows: Tensor) -> Tensor:
        rows.fill_(torch.nan)  # they are its own copy
        return self.held.expand(1, len(rows), -1)

    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        self.held.fill_(float(labels.float().mean()))


class Constants:
    """Makes them, and counts how many it has made."""

    name = "Constant"

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, features: int, outcome: Outcome) -> Family:
        self.made += 1
        return Constant(outcome.outputs)

    def excuse(self, error: BaseException, when: str) -> None:
        raise error


def classes(*is_open: bool) -> Classes:
    return Classes(torch.tensor(is_open))


def answering(outcome: Outcome, *held: float) -> Added:
    """Return a family that answers these numbers."""
    family = Added(Constants(), 0, WIDTH, outcome)
    family.tensors()["state.held"].copy_(torch.tensor(held))
    return family


@pytest.mark.parametrize(
    ("held", "expected"),
    [((0.2, 0.3, 0.5), (0.4, 0.6, 0.0)),
     ((2.0, 6.0, 0.0), (0.25, 0.75, 0.0)),
     ((0.0, 0.0, 1.0), (0.5, 0.5, 0.0)),
     ((-0.1, 0.6, 0.5), (0.5, 0.5, 0.0)),
     ((torch.nan, 0.5, 0.5), (0.5, 0.5, 0.0)),
     ((torch.inf, 0.5, 0.5), (0.5, 0.5, 0.0))],
)  # fmt: skip
def test_the_mixture_gets_probabilities_of_the_classes_that_are_open(
    held: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    outcome = classes(True, True, False)
    found = outcome.known(answering(outcome, *held).answer(ROWS))
    torch.testing.assert_close(found, torch.tensor(expected).expand(1, 4, -1))


def test_the_mixture_gets_quantiles_that_ascend() -> None:
    outcome = Numbers((0.1, 0.5, 0.9), CPU)
    found = outcome.known(answering(outcome, 2.0, -1.0, 99.0).answer(ROWS))
    assert found[0, 0].tolist() == [-1.0, 2.0, 12.0]


def test_an_answer_of_another_shape_is_an_error() -> None:
    family = answering(classes(True, True), 0.5, 0.5)
    family.outcome = classes(True, True, True)
    with pytest.raises(Misfit, match=r"answers \[1, 4, 2\], expected .* \[1, 4, 3\]"):
        family.answer(ROWS)


def test_labels_and_answers_keep_their_unit_where_that_of_the_others_moves() -> None:
    family = answering(Numbers((), CPU), 3.0)
    assert family.answer(ROWS)[0, 0].tolist() == [3.0]
    for ratio, shift in ((0.5, -2.0), (4.0, 1.0)):
        family.rescale(torch.tensor(ratio), torch.tensor(shift))
    assert family.answer(ROWS)[0, 0].tolist() == [(3.0 * 0.5 - 2.0) * 4.0 + 1.0]
    given = Given(ROWS, Scaling(torch.zeros(WIDTH), torch.ones(WIDTH)))
    family.learn(ROWS, Examples(given, torch.full((4,), -1.0), torch.ones(4), (0, 0)))
    assert family.tensors()["state.held"].tolist() == [3.0]
    assert family.answer(ROWS)[0, 0].tolist() == [-1.0]


@pytest.mark.parametrize(("ratio", "shift"), [(1e-30, 0.0), (0.5, -7.0), (100.0, 0.0)])
def test_it_begins_from_nothing_where_the_old_numbers_say_nothing(
    ratio: float, shift: float
) -> None:
    family = answering(Numbers((), CPU), 3.0)
    family.rescale(torch.tensor(2.0), torch.tensor(0.0))
    family.rescale(torch.tensor(ratio), torch.tensor(shift))
    blank = Added(Constants(), 0, WIDTH, family.outcome).tensors()
    assert {k: v.tolist() for k, v in family.tensors().items()} == {
        k: v.tolist() for k, v in blank.items()
    }


def test_a_thread_answers_versions_in_any_order_from_one_instance() -> None:
    family, instances = answering(classes(True, True), 0.5, 0.5), Instances()
    versions = []
    for share in (0.1, 0.2, 0.3):
        family.tensors()["state.held"].copy_(torch.tensor([share, 1.0 - share]))
        versions.append(family.frozen())
    for version, share in [*zip(versions, (0.1, 0.2, 0.3), strict=True), (versions[0], 0.1)]:
        found = instances.answers(version, ROWS)
        torch.testing.assert_close(found[0, 0], torch.tensor([share, 1.0 - share]))
    assert isinstance(family.maker, Constants)
    assert family.maker.made == 2


def test_its_inputs_are_never_changed() -> None:
    rows = ROWS.clone()
    answering(classes(True, True), 0.5, 0.5).answer(rows)
    assert torch.equal(rows, ROWS)
