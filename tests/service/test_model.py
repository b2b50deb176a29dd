"""A model can answer and learn as soon as it exists."""

import asyncio
from pathlib import Path

import pytest

from service import model
from service.log.backlog import Load
from service.model import Model, build_state
from service.settings import load_settings
from service.trainer.store import DamagedError
from tests.support.harness import RedisProcess, wait_for
from tests.support.states import a_batch

OPTIONS = {"model": "logistic", "features": 6, "classes": 3, "batch_size": 20, "optimizer": "sgd"}
NAME = "checkpoint-00000001-00000000000001.safetensors"


def a_model(directory: Path, url: str) -> Model:
    settings = load_settings(OPTIONS | {"data_dir": str(directory)})
    return Model(settings, build_state(settings), url, lambda *_: None, lambda _: None)


def test_a_model_predicts_learns_and_starts_again_where_it_stopped(
    tmp_path: Path, server: RedisProcess
) -> None:
    batch = a_batch(0)

    async def use() -> None:
        model = await asyncio.to_thread(a_model, tmp_path, server.url)
        works = [asyncio.create_task(w) for w in (model.intake.run(), model.predictor.run())]
        assert (await model.predictor.predict(batch.features)).version == 0
        entry = await model.intake.append(batch.to_bytes())
        applied = await asyncio.wrap_future(model.trainer.applied(entry))
        assert applied.model_version == model.trainer.snapshot.version == model.status.version == 1
        assert (await model.predictor.predict(batch.features)).version == 1
        assert model.backlog() == Load(0, 0)
        for work in works:
            work.cancel()
        assert await model.stop(), "it was the learner"
        await model.disconnect()
        model.close()
        again = await asyncio.to_thread(a_model, tmp_path, server.url)
        assert again.trainer.snapshot.version == 1
        await again.stop()
        await again.disconnect()
        again.close()

    asyncio.run(use())


def test_a_model_whose_checkpoints_are_damaged_does_not_exist(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints" / "logistic"
    checkpoints.mkdir(parents=True)
    (checkpoints / NAME).write_bytes(b"damaged")
    with pytest.raises(DamagedError):
        a_model(tmp_path, "redis://127.0.0.1:1")


def test_a_rehearsal_that_compiles_says_so_meanwhile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model, "SLOW_SECONDS", 0.0)
    caplog.set_level("INFO", "funnel")

    def rehearse() -> str:
        wait_for(lambda: "compiling the loops of trees-to-be, once on this disk" in caplog.text)
        return "compiled loops"

    model.rehearse_once("trees-to-be", rehearse)
    assert "trees-to-be run in compiled loops" in caplog.text
