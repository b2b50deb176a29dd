"""Kill -9 in mid-stream; `python -m tests.service.kill` does the same at length."""

import shutil
from pathlib import Path

import pytest

from streams.sources.catalog import get
from tests.support.harness import Fold, RedisProcess, ServiceProcess, fold

EXAMPLES, ENTRY, KILLS = 6_000, 70, 6
OPTIONS = {"max_wait_ms": 600_000, "checkpoint_every_seconds": 0.3}


def run(directory: Path, kills: int, program: str | None = None) -> Fold:
    stream = get("abrupt", EXAMPLES, source="digits")
    redis = RedisProcess(directory / "redis", program).start() if program else None
    options = OPTIONS | ({"redis_url": redis.url} if redis else {})
    service = ServiceProcess(directory, options)
    try:
        return fold(service, stream.batches(ENTRY), kills, seed=1, redis=redis, longest=0.4)
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
def test_resume_after_kill_of_all_families_is_bit_identical(tmp_path: Path) -> None:
    stream = get("agrawal", 1_500)
    options = OPTIONS | {"model": "auto", "features": 9, "classes": 2}
    folds = []
    for name, kills in (("whole", 0), ("killed", 3)):
        service = ServiceProcess(tmp_path / name, options)
        try:
            folds.append(fold(service, stream.batches(ENTRY), kills, seed=2, longest=0.8))
        finally:
            service.kill()
    assert folds[0] == folds[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
def test_resume_after_kill_on_redis_by_url_is_bit_identical(
    tmp_path: Path, uninterrupted: Fold
) -> None:
    assert run(tmp_path, KILLS, "redis-server") == uninterrupted
