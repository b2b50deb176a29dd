"""A small run of the Figure 3 command selects, reports and plots, and shows the shifts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from funnel.experiments import figure3
from funnel.experiments.figure3 import (
    Phase,
    Protocol,
    Setting,
    Split,
    epochs_to_reach,
    make_phases,
    run,
)
from streams.sources.mnist import MNIST


def shifting_phases() -> list[Phase]:
    """Return two Gaussian classes on 784 inputs whose labels swap in the second phase."""
    generator = torch.Generator().manual_seed(0)
    phases = []
    for sign in (1.0, -1.0):
        labels = torch.arange(200) % 2
        noise = torch.randn(200, 784, generator=generator)
        images = noise + sign * 0.15 * (2.0 * labels[:, None] - 1)
        phases.append(Phase(Split(images, labels), Split(images, labels)))
    return phases


PROTOCOL = Protocol(rotations=(0, 180), images=200, batch=100, epochs=15)


@pytest.mark.parametrize("setting", [Setting(0.01), Setting(0.001, 0.1, 0.03)], ids=str)
def test_accuracy_falls_at_the_shift_and_recovers(setting: Setting) -> None:
    curves = run(setting.make, shifting_phases(), PROTOCOL, seed=1)
    assert len(curves.accuracy) == 2 * 15
    assert curves.accuracy[14] > 0.95
    assert curves.accuracy[15] < 0.5
    assert curves.accuracy[-1] > 0.95


def test_funnel_recovers_in_fewer_epochs_than_adagrad_at_the_same_learning_rate() -> None:
    plain, funnel = (
        run(s.make, shifting_phases(), PROTOCOL, seed=1).accuracy
        for s in (Setting(0.003), Setting(0.003, 0.1, 0.03))
    )
    assert epochs_to_reach(0.9, funnel[15:]) < epochs_to_reach(0.9, plain[15:])


def test_a_run_is_reproducible_and_records_scales_and_gains_of_funnel_alone() -> None:
    setting = Setting(0.01, 0.1, 0.03)
    first, again = (run(setting.make, shifting_phases(), PROTOCOL, seed=1) for _ in range(2))
    assert first == again
    assert set(first.scales) == {"weight", "bias"}
    assert np.array(first.gains).shape == (30, 10)
    assert run(Setting(0.01).make, shifting_phases(), PROTOCOL, seed=1).gains == []


def test_a_level_is_reached_in_the_first_epoch_that_has_it_or_past_the_end() -> None:
    assert epochs_to_reach(0.6, [0.2, 0.6, 0.5, 0.8]) == 2
    assert epochs_to_reach(0.9, [0.2, 0.6, 0.5, 0.8]) == 5


def test_the_command_prints_both_tables_and_writes_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure3, "LEARNING_RATES", (0.01, 0.1))
    monkeypatch.setattr(figure3, "GAIN_RATES", (0.1,))
    size = ["--images", "300", "--batch", "100", "--epochs", "2", "--test-images", "200"]
    out = ["--out", str(tmp_path / "f.png"), "--json", str(tmp_path / "f.json")]
    assert figure3.main([*size, *out, "--seeds", "1", "2"]) == 0
    printed = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in printed.splitlines() if "±" in line] == [
        "AdaGrad",
        "Funnel(AdaGrad)",
    ]
    assert "| mean accuracy at lr | 0.01 | 0.1 |" in printed
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    curves = json.loads((tmp_path / "f.json").read_text())
    assert [len(r["accuracy"]) for r in curves["AdaGrad"]] == [6, 6]


def test_the_selection_seed_is_not_reported_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        figure3.main(["--seeds", "0", "1"])
    assert "seed 0 is for the selection" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "30000"], "10 to 20,000"),
        (["--images", "5"], "10 to 20,000"),
        (["--epochs", "0"], "the other counts at least 1"),
        (["--out", "no/such/folder/f.png"], "does not exist; create it"),
    ],
)
def test_impossible_arguments_are_refused_before_the_long_part(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        figure3.main(arguments)
    assert message in capsys.readouterr().err


def test_selection_never_sees_the_test_images_and_phases_share_no_training_image() -> None:
    images = np.full((900, 28, 28), 128, dtype=np.uint8)
    # Each image holds its number in two pixels that are not background.
    images[:, 0, 0], images[:, 0, 1] = 3 + np.arange(900) % 30, 3 + np.arange(900) // 30
    labels = np.zeros(900, dtype=np.uint8)
    upright = Protocol(rotations=(0, 0, 0), images=300, test_images=10)
    data = MNIST(images, labels, images[:10], labels[:10])
    poisoned = data._replace(test_images=np.full_like(data.test_images, 77))
    selection, same = (
        [torch.cat([p.train.images, p.held_out.images]) for p in make_phases(d, upright, 0, True)]
        for d in (data, poisoned)
    )
    assert all(torch.equal(a, b) for a, b in zip(selection, same, strict=True))
    for phases in (selection, [p.train.images for p in make_phases(data, upright, 1, False)]):
        numbers = torch.cat(phases)[:, :2].mul(255).round()
        assert len(torch.unique(numbers, dim=0)) == 900
