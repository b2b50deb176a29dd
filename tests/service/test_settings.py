"""Settings come from the environment or from options; an error names the setting."""

import re
from pathlib import Path

import pytest

from funnel.pool.expert import DEFAULT_EXPERTS
from service.cli import main, make_parser
from service.commands.options import settings_of
from service.fold.networks import ModelError, find_device
from service.fold.optimizers import INNER
from service.fold.spec import MAX_EXPERTS, SHADOW_LR
from service.settings import Settings, SettingsError, load_settings
from tests.support.harness import free_port

CONTRACT = """
    REDIS_URL DATA_DIR MODEL FEATURES CLASSES BATCH_SIZE MAX_WAIT_MS OPTIMIZER LR GAIN_LR SCALE_LR
    MOMENTUM STANDARDIZE DEVICE HOST PORT API_KEY MAX_BODY_BYTES MAX_BACKLOG SEED
    CHECKPOINT_EVERY_SECONDS
"""


def test_every_name_of_the_contract_is_a_setting() -> None:
    assert {name.upper() for name in Settings.model_fields} >= set(CONTRACT.split())


def test_options_take_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNEL_PORT", "81")
    monkeypatch.setenv("FUNNEL_HIDDEN", "7,8")
    assert load_settings().port == 81
    assert load_settings().hidden == (7, 8)
    assert load_settings({"port": "82"}).port == 82


def test_by_default_only_this_machine_can_connect() -> None:
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


def test_a_variable_that_is_not_a_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNEL_BATCHSIZE", "5")
    with pytest.raises(SettingsError, match="did you mean FUNNEL_BATCH_SIZE"):
        load_settings()


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({"lr": "0.1", "hidden": "8"}, ["FUNNEL_HIDDEN", "FUNNEL_LR"]),
        ({"lr": "0.1", "gain_lr": "0.1", "optimizer": "funnel"}, []),
        ({"lr": "0.1", "gain_lr": "0.1", "shadow": "funnel"}, []),
        ({"lr": "0.1", "gain_lr": "0.1", "optimizer": "adam"}, ["FUNNEL_GAIN_LR"]),
        ({"experts": "3", "optimizer": "sgd"}, ["FUNNEL_EXPERTS"]),
        ({"experts": "3", "model": "mlp", "hidden": "8"}, []),
    ],
)
def test_settings_without_effect_are_found(options: dict[str, str], idle: list[str]) -> None:
    assert load_settings(options).without_effect == idle


def test_a_setting_without_effect_is_reported_and_stops_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = make_parser("serve").parse_args(["serve", "--lr", "0.1", "--momentum", "0"])
    assert settings_of(options).lr == 0.1
    assert "FUNNEL_LR, FUNNEL_MOMENTUM without effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    ["foo", "http://host", "redis://host/one", "redis://host:abc", "unix://", "redis://h:99999"],
)
def test_an_address_that_is_not_of_a_redis_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="FUNNEL_REDIS_URL: "):
        load_settings({"redis_url": url})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://",
        "redis://h",
        "redis://:p@h:1/2?socket_timeout=3",
        "rediss://h/0",
        "unix:///a/b.sock",
    ],
)
def test_addresses_of_redis_are_accepted(url: str) -> None:
    assert load_settings({"redis_url": url}).redis_url.get_secret_value() == url


def test_a_key_that_ends_with_a_line_break_is_the_key_before_it() -> None:
    assert load_settings({"api_key": "hush\n"}).api_key.get_secret_value() == "hush"
    with pytest.raises(SettingsError, match="FUNNEL_API_KEY: the key is blank"):
        load_settings({"api_key": " \n"})


def test_secrets_are_not_shown() -> None:
    keys = {"api_key": "hush1", "learn_key": "hush2", "predict_key": "hush3"}
    settings = load_settings(keys | {"redis_url": "redis://:hush@host"})
    assert "hush" not in repr(settings)


def test_a_device_that_does_not_exist_is_named() -> None:
    for name in ("cuda:99", "gpu"):
        with pytest.raises(ModelError, match=f"FUNNEL_DEVICE: '{name}' cannot be used"):
            find_device(name)


def test_the_default_pool_has_as_many_experts_as_settings_allow() -> None:
    assert len(DEFAULT_EXPERTS) == MAX_EXPERTS


def test_every_plain_optimizer_has_a_name_and_a_learning_rate() -> None:
    assert list(INNER) == list(SHADOW_LR)


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
    monkeypatch.setenv("FUNNEL_PORT", str(free_port()))
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("funnel: ")
    assert errors.count("\n") == 1
    assert re.search(message, errors)
