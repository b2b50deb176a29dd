"""The page shows how good given answers were where labels come later, and elsewhere nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import PROGRAM, Page, browsing
from tests.support.harness import serving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="needs chromium")]

OPTIONS = {"features": 2, "classes": 2, "batch_size": 4, "max_wait_ms": 10}
IS_HIDDEN = "document.getElementById('questions').hidden"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Page]:
    with browsing(tmp_path / "browser") as page:
        yield page


def test_questions_and_their_labels_are_shown(tmp_path: Path, browser: Page) -> None:
    with serving(tmp_path / "service", **OPTIONS) as service, service.client() as client:
        browser.open(service.url)
        browser.wait_for("document.getElementById('model').textContent.startsWith('logistic')")
        assert browser.evaluate(IS_HIDDEN)
        assert client.get("/model").json()["questions"] is None
        body = {"features": [[0, 1]] * 3, "ids": ["a", "b", "c"]}
        client.post("/predict", json=body).raise_for_status()
        labels = {"ids": ["a", "b", "nobody"], "labels": [0, 0, 1]}
        client.post("/labels?wait=applied", json=labels).raise_for_status()
        browser.wait_for(f"{IS_HIDDEN} === false")
        names = browser.evaluate(
            "[...document.querySelectorAll('#asked dt')].map(t => t.textContent)"
        )
        assert names == [
            "Accuracy of given answers", "Accuracy when labels came", "Questions with a label",
            "Median delay", "Open questions", "Oldest",
        ]  # fmt: skip
        browser.wait_for(
            "document.querySelectorAll('#asked dd')[2].textContent === '66.7 %' && "
            "document.querySelectorAll('#asked dd')[4].textContent === '1'"
        )
        words = browser.evaluate("document.getElementById('questions-summary').textContent")
        assert words.startswith("2 labels have met their questions; others: 1 waiting.")
        found = client.get("/model").json()["questions"]
        assert found["coverage"] == pytest.approx(2 / 3)
        assert (found["open_questions"], found["results"]["waiting"]) == (1, 1)
        assert found["delay_seconds"] >= 0
        assert browser.problems == []
