"""The estimators keep the contracts of scikit-learn and of river."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from operator import attrgetter

import pytest
from river.checks import yield_checks
from sklearn.utils.estimator_checks import check_estimator

import funnel
from funnel import Classifier, Regressor

Kind = type[Classifier] | type[Regressor]
NOT_TRIED = {"check_array_api_input"}
"""Needs an environment variable of scipy at its import; arrays of other libraries are not taken."""
SLOW = "check_bounded_memory_growth"
"""2,000 rows of each data set, one by one."""


@pytest.mark.parametrize("model", ["auto", "logistic"])
@pytest.mark.parametrize("kind", [Classifier, Regressor])
def test_every_check_of_scikit_learn_passes(kind: Kind, model: str) -> None:
    found = check_estimator(kind(model=model), on_fail=None, on_skip=None)
    assert len(found) > 45
    failed = {f"{one['check_name']}: {one['exception']!r}" for one in found if one["exception"]}
    assert not {text for text in failed if text.split(":")[0] not in NOT_TRIED}


def checks_of_river() -> Iterator[object]:
    for kind, model in ((Classifier, "logistic"), (Regressor, "logistic"), (Classifier, "auto")):
        number = count()
        for check in yield_checks(kind(model=model)):
            if not (check.__name__ == SLOW and model == "auto"):
                name = f"{kind.__name__}-{model}-{next(number)}-{check.__name__}"
                yield pytest.param(check, kind(model=model), id=name)


@pytest.mark.parametrize(("check", "model"), list(checks_of_river()))
def test_every_check_of_river_passes(
    check: Callable[[Classifier | Regressor], None], model: Classifier | Regressor
) -> None:
    check(model.clone())


def test_the_optimizer_alone_imports_neither() -> None:
    code = (
        "import sys, funnel; funnel.Funnel; "
        "assert not {'sklearn', 'river', 'pyarrow', 'pydantic'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.estimators.classifier", None)
    with pytest.raises(ImportError, match=r"pip install 'funnel-stream\[service\]'"):
        attrgetter("Classifier")(funnel)
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        attrgetter("Clasifier")(funnel)
