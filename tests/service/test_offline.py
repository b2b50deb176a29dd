"""The service learns over HTTP exactly what its fold learns alone."""

from pathlib import Path

import pytest

from service.fold.state import State
from service.settings import load_settings
from streams.producer import HTTPTarget, produce
from streams.sources.catalog import get
from tests.support.harness import serving, wait_for
from tests.support.metrics import sample, scrape
from tests.support.states import CPU, step


@pytest.mark.parametrize(
    ("model", "optimizer"), [("logistic", "pool"), ("logistic", "funnel"), ("auto", "pool")]
)
def test_accuracy_in_the_metrics_is_that_of_the_fold_offline(
    tmp_path: Path, model: str, optimizer: str
) -> None:
    stream = get("recurring", 3_000, "digits")
    options = {"model": model, "optimizer": optimizer}
    if model == "auto":
        options["effort"] = "full"  # otherwise the backlog decides what is learned
    settings = load_settings(options)
    offline = State(settings.spec, settings.hyperparameters, CPU)
    for batch in stream.batches(settings.batch_size):
        step(offline, batch)
    with serving(tmp_path, **options) as service, service.client() as client:
        target = HTTPTarget(service.url)
        produce(stream.batches(70), target)  # how requests cut the stream does not matter
        target.close()
        wait_for(lambda: sample(scrape(client), "funnel_model_version") == 30)
        found = scrape(client)
    scores = offline.served.scores.read()
    for name, window, expected in (
        ("accuracy", "total", scores.accuracy),
        ("accuracy", "rolling", scores.rolling_accuracy),
        ("loss", "total", scores.loss),
    ):  # to four digits: pytest and the service may differ in threads, and so in the last bits
        shown = sample(found, f"funnel_{name}", learner="served", window=window)
        assert shown == pytest.approx(expected, abs=5e-5)
