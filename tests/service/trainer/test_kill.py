"""Kill -9 in mid-stream; `python -m tests.service.kill` does the same at length."""

import shutil
from pathlib import Path

import pytest

from streams.sources.catalog import get
from tests.support.harness import Fold, RedisProcess, ServiceProcess, fold
from tests.support.tasks import all_of_task, settings_of

EXAMPLES, ENTRY, KILLS = 6_000, 70, 6
FEW_EXAMPLES, FEW_KILLS = 2_000, 2
OPTIONS = {"max_wait_ms": 600_000, "checkpoint_every_seconds": 0.3}


OWN = "tests.service.fold.own_models:dropout"
OTHER_TASKS = [("binary", "logistic"), ("regression", OWN), ("quantile:0.1,0.5,0.9", "logistic")]
"""Tasks beyond many classes, each with a model: one draws random numbers."""


def run(
    directory: Path,
    kills: int,
    program: str | None = None,
    task: str = "multiclass",
    model: str = "logistic",
    examples: int = EXAMPLES,
) -> Fold:
    stream = get("abrupt", examples, source="digits")
    redis = RedisProcess(directory / "redis", program).start() if program else None
    options = OPTIONS | {"model": model} | settings_of(task, stream.classes)
    options |= {"redis_url": redis.url} if redis else {}
    service = ServiceProcess(directory, options)
    try:
        batches = all_of_task(task, stream.batches(ENTRY))
        return fold(service, batches, kills, seed=1, redis=redis, longest=0.4)
    finally:
        service.kill()
        if redis is not None:
            redis.kill()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Fold:
    ended = run(tmp_path_factory.mktemp("whole"), kills=0)
    assert (ended.examples, ended.version) == (EXAMPLES, EXAMPLES // 100)
    return ended


@pytest.mark.slow
def test_resume_after_kill_is_bit_identical(tmp_path: Path, uninterrupted: Fold) -> None:
    assert run(tmp_path, KILLS) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multiclass", "regression", "quantile:0.1,0.5,0.9"])
def test_resume_after_kill_of_all_families_is_bit_identical(tmp_path: Path, task: str) -> None:
    stream = get("agrawal", 1_500)
    options = OPTIONS | {"model": "auto", "effort": "full", "features": 9} | settings_of(task, 2)
    folds = []
    for name, kills in (("whole", 0), ("killed", 3)):
        service = ServiceProcess(tmp_path / name, options)
        try:
            batches = all_of_task(task, stream.batches(ENTRY))
            folds.append(fold(service, batches, kills, seed=2, longest=0.8))
        finally:
            service.kill()
    assert folds[0] == folds[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
def test_resume_after_kill_on_redis_by_url_is_bit_identical(
    tmp_path: Path, uninterrupted: Fold
) -> None:
    assert run(tmp_path, KILLS, "redis-server") == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize(("task", "model"), OTHER_TASKS)
def test_resume_after_kill_is_bit_identical_for_every_task(
    tmp_path: Path, task: str, model: str
) -> None:
    whole, killed = (
        run(tmp_path / str(kills), kills, task=task, model=model, examples=FEW_EXAMPLES)
        for kills in (0, FEW_KILLS)
    )
    assert (whole.examples, whole.version) == (FEW_EXAMPLES, FEW_EXAMPLES // 100)
    assert killed == whole
