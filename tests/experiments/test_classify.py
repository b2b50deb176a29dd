"""The image classification command trains, resumes exactly, and explains missing data."""

import hashlib
import io
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.experiments.classify import main
from tests.experiments.images import (
    CIFAR10_FOLDER,
    CIFAR10_TEST,
    CIFAR10_TRAIN,
    DataError,
    InMemory,
    open_source,
    read_cifar10,
)
from tests.experiments.networks import mobilenet_v1, resnet50
from tests.experiments.training import Run, Settings, learning_rate_factor

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an image folder of two classes that differ in brightness."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, level in (("bright", 200), ("dark", 50)):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(level - 40, level + 40, (48, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "images"


def small(**changes: object) -> Settings:
    settings = {
        "network": "mobilenet_v1",
        "optimizer": "momentum",
        "funnel": True,
        "schedule": "cosine",
        "steps": 6,
        "batch_size": 4,
        "width": 0.1,
        "gain_lr": 0.01,
        "lr": 0.01,
    }
    return Settings(**{**settings, **changes})


def in_memory() -> InMemory:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(40) % 4
    return InMemory((images[:30], labels[:30]), (images[30:], labels[30:]), True, CPU)


@pytest.mark.parametrize(
    ("network", "published"), [(mobilenet_v1, 4_231_976), (resnet50, 25_557_032)]
)
def test_networks_have_the_published_number_of_parameters(network, published: int) -> None:
    assert sum(p.numel() for p in network(1000).parameters()) == published


def test_the_first_convolution_keeps_the_size_of_small_images() -> None:
    x = torch.zeros(1, 3, 32, 32)
    assert mobilenet_v1(10, 0.1, small_images=True)[0](x).shape[-1] == 32
    assert mobilenet_v1(10, 0.1)[0](x).shape[-1] == 16


@pytest.mark.parametrize("network", ["mobilenet_v1", "resnet50"])
def test_an_image_folder_runs_through_to_a_table(
    network: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--width", "0.1", "--image-size", "32", "--steps", "2", "--batch-size", "4"]
    log = tmp_path / "log.csv"
    asked = ["--data", str(folder), "--network", network, "--funnel", "--workers", "0"]
    assert main([*asked, *size, "--evaluate-every", "1", "--log", str(log)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[2].startswith("| Funnel(Momentum) | constant | 2 |")
    assert len(log.read_text().splitlines()) == 1 + 2


def test_a_table_runs_every_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--width", "0.1", "--image-size", "32", "--steps", "1", "--batch-size", "2"]
    assert main(["--table", "1", "--data", str(folder), "--workers", "0", *size]) == 0
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[c.strip() for c in row] for row in rows] == [
        ["Momentum", "cosine"],
        ["Momentum", "constant"],
        ["Funnel(Momentum)", "constant"],
    ]


@pytest.mark.parametrize("source", ["in memory", "folder"])
def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(
    source: str, folder: Path, tmp_path: Path
) -> None:
    data = in_memory() if source == "in memory" else open_source(str(folder), CPU, 0, 32)
    whole = Run(small(), data, CPU)
    whole.train()
    first = Run(small(), data, CPU)
    first.train(tmp_path / "half.pt", stop_after=3)
    second = Run(small(), data, CPU)
    second.resume(tmp_path / "half.pt")
    second.train()
    assert second.step == 6
    for name, value in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value), name


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    Run(small(), in_memory(), CPU).save(tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"is of a run with lr 0\.01"):
        Run(small(lr=0.02), in_memory(), CPU).resume(tmp_path / "a.pt")


def test_ctrl_c_writes_the_checkpoint_and_exits_130(folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    command = [sys.executable, "-m", "tests.experiments.classify", "--data", str(folder)]
    command += ["--width", "0.1", "--image-size", "32", "--batch-size", "2", "--workers", "0"]
    command += ["--evaluate-every", "2", "--checkpoint", str(checkpoint)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not checkpoint.exists() and time.monotonic() < deadline:
            assert process.stderr.read(1)  # the progress bar is drawn at every step
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.endswith("interrupted\n")
    assert torch.load(checkpoint, weights_only=True)["step"] >= 2


def test_a_diverging_run_stops_and_says_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--width", "0.1", "--image-size", "32", "--steps", "60", "--batch-size", "2"]
    asked = ["--data", str(folder), "--workers", "0", "--lr", "1e38"]
    assert main([*asked, *size, "--evaluate-every", "1"]) == 1
    assert "try a smaller --lr" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 0.5, 0.1464466, 0.0]),
        ("step", [0.5, 0.1, 0.01, 0.01]),
    ],
)
def test_schedules_do_what_their_names_say(schedule: str, expected: list[float]) -> None:
    factor = learning_rate_factor(small(schedule=schedule, steps=100, warmup=2))
    assert [factor(s) for s in (0, 50, 75, 100)] == pytest.approx(expected, abs=1e-6)


def archive_of(records: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in records.items():
            info = tarfile.TarInfo(f"{CIFAR10_FOLDER}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def test_cifar10_is_downloaded_checked_and_parsed(tmp_path: Path) -> None:
    record = bytes([7]) + bytes(range(256)) * 12
    packed = archive_of(dict.fromkeys((*CIFAR10_TRAIN, CIFAR10_TEST), record * 2))
    (tmp_path / "cifar.tar.gz").write_bytes(packed)
    url = (tmp_path / "cifar.tar.gz").as_uri()
    digest = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    train, test = read_cifar10(tmp_path / "cache", url, digest)
    assert train[0].shape == (10, 3, 32, 32)
    assert test[1].tolist() == [7, 7]
    assert test[0][0, 0, 0, :4].tolist() == [0, 1, 2, 3]
    read_cifar10(tmp_path / "cache", "file:///nowhere")  # the cache has it now


def test_cifar10_with_a_wrong_checksum_is_refused_and_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "cifar.tar.gz").write_bytes(archive_of({CIFAR10_TEST: b"x"}))
    with pytest.raises(DataError, match="has the MD5"):
        read_cifar10(tmp_path / "cache", (tmp_path / "cifar.tar.gz").as_uri())
    assert not (tmp_path / "cache").exists()


def test_the_error_of_unavailable_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"could not be downloaded.*put test_batch\.bin"):
        read_cifar10(tmp_path, "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(DataError, match="no images in"):
        open_source(str(tmp_path / "none"), CPU)


def test_training_batches_are_cropped_from_the_padded_image_and_depend_on_the_step_alone() -> None:
    source = in_memory()
    first, later = source.train(5, 0, seed=1), source.train(5, 1, seed=1)
    a = next(first)
    assert a[0].shape == (5, 3, 32, 32)
    b, c = next(first), next(later)
    assert torch.equal(b[0], c[0])
    assert torch.equal(b[1], c[1])
