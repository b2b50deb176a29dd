"""Settings come from the environment or from options, and mistakes are named."""

import re
from pathlib import Path

import pytest

from service.cli import main
from service.settings import Settings, SettingsError, load_settings

CONTRACT = """
    REDIS_URL DATA_DIR MODEL FEATURES CLASSES BATCH_SIZE MAX_WAIT_MS OPTIMIZER LR GAIN_LR SCALE_LR
    MOMENTUM STANDARDIZE DEVICE HOST PORT API_KEY MAX_BODY_BYTES MAX_BACKLOG SEED
    CHECKPOINT_EVERY_SECONDS
"""


def test_every_name_of_the_contract_is_a_setting() -> None:
    assert {name.upper() for name in Settings.model_fields} >= set(CONTRACT.split())


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNEL_PORT", "81")
    monkeypatch.setenv("FUNNEL_HIDDEN", "7,8")
    assert load_settings().port == 81
    assert load_settings().hidden == (7, 8)
    assert load_settings({"port": "82"}).port == 82


def test_by_default_only_this_machine_is_served() -> None:
    assert load_settings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "http"),
        ("port", "70000"),
        ("batch_size", "0"),
        ("lr", "nan"),
        ("lr", "0"),
        ("momentum", "1"),
        ("optimizer", "adamw"),
        ("model", "resnet"),
        ("hidden", "4,x"),
        ("hidden", "0"),
        ("checkpoint_every_seconds", "inf"),
        ("standardize", "perhaps"),
        ("appendfsync", "sometimes"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"FUNNEL_{name.upper()}"
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(variable)
    assert "\n" not in str(caught.value)


def test_a_variable_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNEL_BATCHSIZE", "5")
    with pytest.raises(SettingsError, match="did you mean FUNNEL_BATCH_SIZE"):
        load_settings()


def test_a_rate_that_nobody_would_use_is_refused() -> None:
    with pytest.raises(SettingsError, match="FUNNEL_LR: the experts of the pool have rates"):
        load_settings({"lr": "0.1"})
    assert load_settings({"lr": "0.1", "optimizer": "funnel"}).lr == 0.1
    assert load_settings({"lr": "0.1", "shadow": "funnel"}).rates.lr == 0.1


def test_secrets_are_not_shown() -> None:
    keys = {"api_key": "hush1", "learn_key": "hush2", "predict_key": "hush3"}
    settings = load_settings(keys | {"redis_url": "redis://:hush@host"})
    assert "hush" not in repr(settings)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="DEVICE"):
        load_settings({"device": "cuda:99"}).torch_device()
    with pytest.raises(SettingsError, match="DEVICE"):
        load_settings({"device": "gpu"}).torch_device()


@pytest.mark.parametrize("command", ["", "serve", "demo", "stream", "data"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: funnel {command}".strip() in shown
    if command in ("serve", "demo"):
        for name in Settings.model_fields:
            assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--port", "x"], "FUNNEL_PORT"),
        (["serve", "--model", "nowhere:Model"], "nowhere"),
        (["serve", "--device", "cuda:99"], "DEVICE"),
        (["stream", "sea", "--to", "ftp://host"], "ftp"),
        (["demo", "sea", "--optimizer", "x"], "FUNNEL_OPTIMIZER"),
    ],
)
def test_a_failure_is_one_line_and_a_status(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("funnel: ")
    assert errors.count("\n") == 1
    assert re.search(message, errors)
