"""`funnel export` of a running service: other programs answer as it does."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from service.export import Exported, ExportError
from streams.batch import Batch
from tests.support.cli import funnel
from tests.support.harness import SAFETENSORS, ServiceProcess, serving

Features = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def examples(n: int) -> tuple[Features, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    features = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    return features, np.digitize(features[:, 0] - features[:, 1], [-0.7, 0.7])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that has learned dense features of three classes."""
    options = {"features": 4, "classes": 3, "batch_size": 100, "max_wait_ms": 20}
    with serving(tmp_path_factory.mktemp("service"), **options) as found:
        features, labels = examples(1_500)
        with found.client() as client:
            client.post(
                "/learn?wait=applied", content=Batch(features, labels).to_bytes(),
                headers=SAFETENSORS,
            ).raise_for_status()  # fmt: skip
        yield found


def export(service: ServiceProcess, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return funnel("export", *arguments, "--from", service.url)


def answers(service: ServiceProcess, features: Features) -> Features:
    with service.client() as client:
        found = client.post("/predict", json={"features": features.tolist()})
    return np.array(found.raise_for_status().json()["probabilities"], np.float32)


def test_onnxruntime_answers_as_the_service(service: ServiceProcess, tmp_path: Path) -> None:
    path, (features, _) = tmp_path / "m.onnx", examples(200)
    ran = export(service, str(path))
    assert ran.returncode == 0, ran.stderr
    assert "as onnx, of 4 dense features" in ran.stdout
    assert ran.stderr == ""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [found] = session.run(["probabilities"], {"inputs": features})
    assert np.abs(found - answers(service, features)).max() < 1e-4
    assert list(tmp_path.iterdir()) == [path]


def test_torch_answers_as_the_service_without_this_package(
    service: ServiceProcess, tmp_path: Path
) -> None:
    path, (features, _) = tmp_path / "m.pt2", examples(50)
    assert export(service, str(path)).returncode == 0
    np.save(tmp_path / "x.npy", features)
    script = (
        "import sys, numpy, torch; program = torch.export.load('m.pt2').module();"
        "found = program(torch.from_numpy(numpy.load('x.npy'))).detach().numpy();"
        "numpy.save('y.npy', found);"
        "assert not {'service', 'funnel', 'streams'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, check=True)
    assert np.abs(np.load(tmp_path / "y.npy") - answers(service, features)).max() < 1e-4


def test_safetensors_hold_the_whole_module(service: ServiceProcess, tmp_path: Path) -> None:
    path, (features, _) = tmp_path / "any", examples(50)
    assert export(service, str(path), "--to", "safetensors").returncode == 0
    module = Exported.from_bytes(path.read_bytes())
    with torch.no_grad():
        found = module(torch.from_numpy(features)).numpy()
    assert np.abs(found - answers(service, features)).max() < 1e-5
    with service.client() as client:
        assert module.about.version == client.get("/model").json()["model_version"]


@pytest.mark.parametrize(
    "options",
    [
        {"task": "binary", "classes": 2},
        {"task": "regression"},
        {"task": "quantile:0.1,0.9"},
        {"classes": 3, "model": "mlp", "hidden": "16"},
        {"classes": 3, "optimizer": "sgd", "standardize": False, "calibrate": "false"},
    ],
)
def test_every_task_is_answered_alike(options: dict[str, Any], tmp_path: Path) -> None:
    features, classes = examples(1_000)
    labels = classes.clip(max=1) if "classes" in options else 50.0 + 10.0 * features[:, 0]
    options = options | {"features": 4, "batch_size": 100, "max_wait_ms": 20}
    with serving(tmp_path, **options) as service, service.client() as client:
        client.post(
            "/learn?wait=applied", content=Batch(features, labels).to_bytes(), headers=SAFETENSORS
        ).raise_for_status()
        body = {"features": features[:50].tolist()}
        answer = client.post("/predict", json=body).raise_for_status().json()
        module = Exported.from_bytes(client.get("/model/export").raise_for_status().content)
    with torch.no_grad():
        found = module(torch.from_numpy(features[:50])).numpy()
    expected = answer.get("probabilities")
    if "std" in answer:
        expected = list(zip(answer["values"], answer["std"], strict=True))
    elif expected is None:
        expected = list(zip(*answer["quantiles"].values(), strict=True))
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_file_without_a_format_and_a_folder_that_is_gone_are_named(
    service: ServiceProcess, tmp_path: Path
) -> None:
    ran = export(service, str(tmp_path / "model.bin"))
    assert (ran.returncode, "ends with none of .onnx, .pt2" in ran.stderr) == (2, True)
    ran = export(service, str(tmp_path / "gone" / "m.safetensors"))
    assert (ran.returncode, "cannot be written: No such file" in ran.stderr) == (1, True)


def test_families_that_remember_rows_are_refused_by_name(tmp_path: Path) -> None:
    options = {"features": 4, "classes": 3, "model": "auto", "batch_size": 10, "max_wait_ms": 20}
    with serving(tmp_path, **options) as service, service.client() as client:
        refused = client.get("/model/export")
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "not_exportable"
        ran = export(service, str(tmp_path / "m.onnx"))
        assert ran.returncode == 1
        assert "trees, neighbours and frequencies of labels cannot be exported" in ran.stderr
        assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("raw", [b"", b"no", b"\x02\0\0\0\0\0\0\0{}", bytes(100)])
def test_bytes_that_are_no_model_are_refused(raw: bytes) -> None:
    with pytest.raises(ExportError, match="no exported model"):
        Exported.from_bytes(raw)
