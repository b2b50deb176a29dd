"""Kill -9 between a question and its label, and between a label and its cut."""

from pathlib import Path

import pytest

from tests.service.label_kills import RULES, folded, joined_by, killed

QUESTIONS, KILLS = 15, 2


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return killed(tmp_path_factory.mktemp("whole"), 0, 0, False, QUESTIONS)


def test_the_service_learns_the_questions_in_the_order_of_their_labels(uninterrupted: str) -> None:
    assert uninterrupted == folded(QUESTIONS).sha256()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_labels_are_joined_once_whenever_the_service_is_killed(
    tmp_path: Path, uninterrupted: str, seed: int
) -> None:
    assert killed(tmp_path, KILLS, seed, False, QUESTIONS) == uninterrupted


@pytest.mark.slow
def test_a_standby_takes_over_with_open_questions(tmp_path: Path, uninterrupted: str) -> None:
    assert killed(tmp_path, KILLS, 1, True, QUESTIONS) == uninterrupted


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", RULES)
def test_sums_and_weighted_negatives_outlast_kills(tmp_path: Path, rule: str, seed: int) -> None:
    assert joined_by(rule, tmp_path, KILLS, seed, QUESTIONS)
