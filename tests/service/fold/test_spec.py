"""The spec of a model, and how another one is refused."""

from dataclasses import replace

import pytest

from service.fold.spec import Spec
from tests.support.states import a_spec

POOL = a_spec(optimizer="pool")


@pytest.mark.parametrize(
    ("mine", "theirs", "named"),
    [
        (POOL, POOL, []),
        (POOL, replace(POOL, seed=5), ["seed"]),
        (POOL, replace(POOL, experts=3), ["experts"]),
        (POOL, a_spec(optimizer="funnel"), ["optimizer"]),
        (a_spec(optimizer="funnel"), POOL, ["optimizer"]),
        (a_spec(optimizer="funnel"), replace(POOL, experts=3), ["optimizer", "experts"]),
        (a_spec(optimizer="adam"), a_spec(optimizer="funnel"), ["optimizer"]),
        (a_spec("logistic"), a_spec("mlp"), ["model", "hidden"]),
        (a_spec("mlp"), a_spec("logistic"), ["model"]),
    ],
)
def test_only_settings_that_have_to_change_are_named(
    mine: Spec, theirs: Spec, named: list[str]
) -> None:
    assert [name for name, _, _ in mine.differences(theirs)] == named
    assert all(there != here for _, there, here in mine.differences(theirs))
