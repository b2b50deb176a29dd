"""The page says first where the model is below a floor, and shows the scores of all learners."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streams.batch import Batch
from tests.support.browser import PROGRAM, Page, browsing
from tests.support.harness import SAFETENSORS, ServiceProcess, serving, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="needs chromium")]

OPTIONS = {
    "features": 6, "classes": 2, "batch_size": 100, "max_wait_ms": 20, "shadow": "adagrad",
    "optimizer": "sgd", "device": "cpu",
}  # fmt: skip


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Page]:
    with browsing(tmp_path / "browser") as page:
        yield page


def learn(service: ServiceProcess, says: bool) -> None:
    """Send labels of which 8 % are 1; features say which they are, or nothing."""
    random = np.random.default_rng(0)
    with service.client() as client:
        for _ in range(15):
            labels = (random.random(100) < 0.08).astype(np.int64)
            features = random.normal(size=(100, 6)).astype(np.float32)
            features[:, 0] += 6.0 * says * labels
            body = Batch(features, labels).to_bytes()
            answer = client.post("/learn?wait=applied", content=body, headers=SAFETENSORS)
            answer.raise_for_status()


def test_a_model_below_a_floor_is_said_first(tmp_path: Path, browser: Page) -> None:
    with serving(tmp_path / "service", **OPTIONS, lr=50.0) as service:
        learn(service, says=False)
        browser.open(service.url)
        browser.wait_for("document.getElementById('below').hidden === false")
        words = browser.evaluate("document.querySelector('main').firstElementChild.textContent")
        assert words.startswith(
            "Over the last 1,000 examples the model is below the floor majority: accuracy "
        )
        assert "A rule without a model does better." in words
        with service.client() as client:
            assert client.get("/model").json()["below_floors"]
        assert browser.problems == []


def test_floors_are_thin_lines_and_all_have_scores(tmp_path: Path, browser: Page) -> None:
    with serving(tmp_path / "service", **OPTIONS, lr=0.5) as service:
        learn(service, says=True)
        browser.open(service.url)
        browser.wait_for(
            "[...document.querySelectorAll('#learners th[scope=row]')].map(t => t.textContent)"
            ".join() === 'served,adagrad,calibrated,majority,no_change'"
        )
        assert browser.evaluate("document.getElementById('below').hidden")
        columns_are = "document.querySelectorAll('#learners th[scope=col]').length"
        browser.wait_for(f"{columns_are} > 1")  # the first answer may have no scores yet
        columns = browser.evaluate(
            "[...document.querySelectorAll('#learners th[scope=col]')].map(t => t.textContent)"
        )
        assert columns == [
            "Learner", "Accuracy", "Balanced", "Log loss", "Brier", "AUC", "PR-AUC", "ECE",
        ]  # fmt: skip
        cells = browser.evaluate(
            "[...document.querySelectorAll('#learners td')].map(t => t.textContent)"
        )
        assert "–" not in cells
        assert browser.evaluate("document.querySelectorAll('#classes tbody tr').length") == 2
        with service.client() as client:

            def matrix() -> list[list[int]]:
                found: list[list[int]] = client.get("/model").json()["by_class"]["1000"][
                    "confusion"
                ]
                return found

            wait_for(lambda: sum(map(sum, matrix())) == 1_000)  # statistics are a second old
            browser.wait_for(
                "JSON.stringify([...document.querySelectorAll('#confusion tbody tr')].map(row => "
                "[...row.querySelectorAll('td')].map(t => +t.textContent.replaceAll(/[,·]/g, ''))))"
                f" === JSON.stringify({json.dumps(matrix())})"
            )
        browser.wait_for("document.querySelectorAll('#accuracy .swatch.floor').length === 2")
        names = browser.evaluate(
            "[...document.querySelectorAll('#accuracy .legend li')].map(l => l.textContent)"
        )
        assert names == ["served", "adagrad", "majority", "no_change"]
        assert browser.problems == []


def test_numbers_have_their_own_scores_and_floors_and_no_classes(
    tmp_path: Path, browser: Page
) -> None:
    options = OPTIONS | {"task": "regression", "optimizer": "pool"}
    del options["classes"]
    random = np.random.default_rng(0)
    with serving(tmp_path / "service", **options) as service:
        with service.client() as client:
            for _ in range(15):
                features = random.normal(size=(100, 6)).astype(np.float32)
                body = Batch(features, 300 + 50 * features[:, 0]).to_bytes()
                answer = client.post("/learn?wait=applied", content=body, headers=SAFETENSORS)
                answer.raise_for_status()
        browser.open(service.url)
        browser.wait_for(
            "[...document.querySelectorAll('#learners th')].map(t => t.textContent).join() === "
            "'Learner,Absolute error,RMSE,R²,Coverage,served,adagrad,mean,no_change'"
        )
        for name in ("classes", "confusion"):
            panel = f"document.getElementById('{name}').closest('.panel').hidden"
            assert browser.evaluate(panel)
        assert "majority" not in browser.evaluate("document.getElementById('floors').textContent")
        title = browser.evaluate("document.getElementById('accuracy-title').textContent")
        assert title == "Mean absolute error of the last 1,000 examples"
        legend = "[...document.querySelectorAll('#accuracy .legend li')].map(t => t.textContent)"
        browser.wait_for(f"{legend}.join() === 'served,adagrad,mean,no_change'")
        story = browser.evaluate("document.getElementById('story').textContent")
        assert re.search(
            r"has a mean absolute error of [\d.]+ over the last 1,000 examples, "
            r"[\d.]+ % (above|below) adagrad, [\d.]+ % below mean, [\d.]+ % below no_change\.",
            story,
        )
        assert browser.problems == []
