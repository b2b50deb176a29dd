"""A service with a family of its user's: it shows, and it comes back bit for bit after kill -9."""

from pathlib import Path

import numpy as np
import pytest

from service.fold.networks import ModelError
from service.log.errors import LogError
from streams.batch import Batch
from tests.service.fold.test_families import checkers, heights
from tests.support.harness import ServiceProcess, fold, serving, wait_for
from tests.support.metrics import sample, scrape

CHOSEN = "linear,frequencies,tests.service.fold.own_families:Growing"
OPTIONS = {"model": "auto", "families": CHOSEN, "effort": "full", "predict_ms": 0}


def test_its_weight_is_shown_and_it_answers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with serving(tmp_path, **OPTIONS) as service, service.client() as client:
        for _ in range(12):  # two rings around one centre, and a third class far away
            ring = rng.integers(0, 3, 100)
            points = rng.normal(size=(100, 2)) + 9.0 * (ring == 2)[:, None]
            rows = [{"x": float(x), "y": float(y)} for x, y in points]
            labels = [f"ring {k}" for k in ring]
            body = {"rows": rows, "labels": labels}
            client.post("/learn?wait=applied", json=body).raise_for_status()
        wait_for(lambda: client.get("/optimizer").json()["family_weights"].get("Growing"))
        found = client.get("/optimizer").json()
        asked = {"rows": [{"x": 9.0, "y": 9.0}, {"x": None, "y": 1e30}]}
        answer = client.post("/predict?explain=2", json=asked).raise_for_status().json()
        shown = scrape(client)
    assert found["family_weights"].keys() == {"linear", "frequencies", "Growing"}
    assert {"Growing/near", "Growing/far"} < found["expert_weights"].keys()
    assert sum(found["family_weights"].values()) == pytest.approx(1.0, abs=1e-4)
    assert sample(shown, "funnel_family_weight", family="Growing") > 0.0
    assert answer["labels"][0] == "ring 2"
    assert all(abs(sum(own.values()) - 1.0) < 1e-4 for own in answer["probabilities"])


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_it_resumes_after_kill_bit_for_bit(tmp_path: Path, task: str) -> None:
    shape = {"classes": 2} if task == "multiclass" else {}
    options = OPTIONS | {"task": task, "features": 5, "checkpoint_every_seconds": 0.3} | shape
    folds = []
    for name, kills in (("whole", 0), ("killed", 2)):
        service = ServiceProcess(tmp_path / name, options | {"max_wait_ms": 600_000})
        try:
            folds.append(fold(service, batches(task), kills, seed=2, longest=0.5))
        finally:
            service.kill()
    assert folds[0] == folds[1]


def batches(task: str) -> list[Batch]:
    if task == "multiclass":
        return [checkers(k, 70) for k in range(20)]
    return [heights(k, 70, zero=300.0 * (k // 6)) for k in range(20)]


def test_a_question_at_which_it_raises_is_refused_alone(tmp_path: Path) -> None:
    options = OPTIONS | {"features": 5, "classes": 2}
    raising = "linear,tests.service.fold.own_families:RaisesOnLarge"
    with (
        serving(tmp_path, **options | {"families": raising}) as service,
        service.client() as client,
    ):
        batch = checkers(0)
        body = {"features": batch.features.tolist(), "labels": batch.labels.tolist()}
        client.post("/learn?wait=applied", json=body).raise_for_status()
        usual = [1.0] * 5
        client.post("/predict", json={"features": [usual]}).raise_for_status()
        large = client.post("/predict", json={"features": [usual, [1.0] * 4 + [1e9]]})
    assert large.status_code == 422
    assert large.json()["error"]["code"] == "no_prediction"
    assert large.json()["error"]["index"] == 1


def test_a_batch_at_which_it_raises_is_counted(tmp_path: Path) -> None:
    raising = "linear,tests.service.fold.own_families:RaisesOnLarge"
    options = OPTIONS | {"features": 5, "classes": 2, "families": raising}
    with serving(tmp_path, **options) as service, service.client() as client:
        batch = checkers(0)
        batch.features[3, 4] = 1e9

        def errors() -> float:
            return sample(scrape(client), "funnel_family_errors_total", family="RaisesOnLarge")

        for sent in (checkers(1), batch):
            body = {"features": sent.features.tolist(), "labels": sent.labels.tolist()}
            client.post("/learn?wait=applied", json=body).raise_for_status()
            if sent is not batch:
                assert errors() == 0.0
        wait_for(lambda: errors() > 0.0)
        assert client.get("/model").json()["model_version"] == 2


def test_a_service_with_other_families_is_refused_with_the_difference(tmp_path: Path) -> None:
    options = OPTIONS | {"features": 5, "classes": 2}
    with serving(tmp_path, **options) as service, service.client() as client:
        body = {"features": checkers(0).features.tolist(), "labels": checkers(0).labels.tolist()}
        client.post("/learn?wait=applied", json=body).raise_for_status()
        service.terminate()
    with pytest.raises(LogError, match=r"families is .*own_families:Growing.* there and"):
        ServiceProcess(tmp_path, options | {"families": "linear,frequencies"}).start()


def test_a_family_that_cannot_work_ends_the_start_with_one_line(tmp_path: Path) -> None:
    broken = "tests.service.fold.own_families:Unnormalized"
    service = ServiceProcess(tmp_path, OPTIONS | {"families": f"linear,{broken}", "features": 5})
    with pytest.raises(ModelError, match=f"family {broken} answers probabilities that sum to 3"):
        service.start()
