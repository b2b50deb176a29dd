"""Settings come from the environment or from options; an error names the setting."""

import re
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from funnel.pool.expert import DEFAULT_EXPERTS
from service.cli import main, make_parser
from service.commands.options import settings_of
from service.fold.networks import ModelError, find_device
from service.fold.optimizers import INNER
from service.fold.schema.schema import Schema
from service.fold.spec import MAX_EXPERTS, SHADOW_LR
from service.model import build_state
from service.settings import KEYS, NEVER_EMPTY, SECRETS, Settings, SettingsError, load_settings
from streams.sources import mnist
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


def test_an_empty_variable_is_as_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields.keys() - set(NEVER_EMPTY):
        for empty in ("", " ", '""'):
            monkeypatch.setenv(f"FUNNEL_{name.upper()}", empty)
            assert load_settings() == load_settings({})
            assert load_settings().model_fields_set == set()
        monkeypatch.delenv(f"FUNNEL_{name.upper()}")


@pytest.mark.parametrize("empty", ["", " ", '""'])
def test_an_empty_key_does_not_open_the_service(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUNNEL_API_KEY", empty)
    with pytest.raises(SettingsError, match="FUNNEL_API_KEY: the key is blank"):
        load_settings()
    assert load_settings({"api_key": "mine"}).api_key.get_secret_value() == "mine"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("s3://bucket/a/prefix/", "s3://bucket/a/prefix"),
        ("gs://bucket", "gs://bucket"),
        ("az://container/prefix", "az://container/prefix"),
        ("file:///mnt/state/", "file:///mnt/state"),
        ("", ""),
    ],
)
def test_checkpoints_are_kept_where_state_says(given: str, kept: str) -> None:
    assert load_settings({"state": given}).state == kept


@pytest.mark.parametrize(
    "value",
    [
        "bucket/prefix", "s3:/bucket", "s3://", "http://bucket/x", "file://host/x", "file:///",
        "s3://bucket/../x", "s3://bucket//x", "s3://key:topsecret@bucket/x",
        "s3://bucket/x?sig=topsecret", "s3://bucket/x#topsecret",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_and_what_may_be_a_secret_is_not_shown(
    value: str,
) -> None:
    with pytest.raises(SettingsError, match="FUNNEL_STATE: give ") as said:
        load_settings({"state": value})
    assert "topsecret" not in str(said.value)


@pytest.mark.parametrize(("name", "value"), [("host", ""), ("host", "[]"), ("data_dir", " ")])
def test_an_empty_option_is_not_everything(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"FUNNEL_{name.upper()}: give a"):
        load_settings({name: value})


@pytest.mark.parametrize(
    ("given", "host"),
    [("::", "::"), ("[::]", "::"), ("::1", "::1"), ("[::1]", "::1"), (" h.example ", "h.example")],
)
def test_a_host_is_a_name_or_an_address_with_or_without_brackets(given: str, host: str) -> None:
    assert load_settings({"host": given}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1:80", "http://h", "a b", "[::1]:80", "::x"])
def test_a_host_with_anything_else_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="FUNNEL_HOST: give an address or a host name"):
        load_settings({"host": host})


@pytest.mark.parametrize("value", ["~/state", '"~/state"', "'~/state' "])
def test_a_data_folder_may_lie_in_the_home_directory(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("FUNNEL_DATA_DIR", value)
    assert load_settings().data_dir == Path("/somewhere/state")
    assert mnist.cache_directory() == Path("/somewhere/state/mnist")


def test_variables_of_service_links_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNEL_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("FUNNEL_REDIS_SERVICE_HOST", "10.0.0.2")
    assert load_settings() == load_settings({})


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_read_from_files(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    value = "redis://h/1" if name == "redis_url" else "http://h/x"
    file.write_text(f"{value}\n")
    if name not in ("redis_url", "api_key"):
        monkeypatch.setenv("FUNNEL_API_KEY", "the one")
    monkeypatch.setenv(f"FUNNEL_{name.upper()}_FILE", str(file))
    assert getattr(load_settings(), name).get_secret_value() == value
    assert value not in repr(load_settings())
    given = f"{value}0"
    assert getattr(load_settings({name: given}), name).get_secret_value() == given
    monkeypatch.setenv(f"FUNNEL_{name.upper()}", value)
    with pytest.raises(SettingsError, match=f"FUNNEL_{name.upper()}_FILE: .* set too; remove one"):
        load_settings()


def test_a_file_that_holds_no_key_does_not_open_the_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("\n")
    monkeypatch.setenv("FUNNEL_API_KEY_FILE", "")
    with pytest.raises(SettingsError, match="FUNNEL_API_KEY_FILE: the path is blank"):
        load_settings()
    for name, what in (("empty", "is empty"), ("gone", "cannot be read")):
        monkeypatch.setenv("FUNNEL_API_KEY_FILE", str(tmp_path / name))
        with pytest.raises(SettingsError, match=f"FUNNEL_API_KEY_FILE: .*{name} {what}"):
            load_settings()


def test_help_shows_no_option_for_a_key_and_says_what_processes_show_of_addresses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name in KEYS:
        option = f"--{name.replace('_', '-')}"
        assert (f"{option} " in shown, f"{option}-file " in shown) == (False, True)
    for name in set(SECRETS) - set(KEYS):
        variable = f"FUNNEL_{name.upper()}"
        assert f"ps shows this option to every user: prefer {variable} or {variable}_FILE" in shown


def test_a_variable_that_is_not_a_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNEL_BATCHSIZE", "5")
    with pytest.raises(SettingsError, match="did you mean FUNNEL_BATCH_SIZE"):
        load_settings()


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({"lr": "0.1", "hidden": "8"}, ["FUNNEL_LR"]),
        ({"lr": "0.1", "hidden": "8", "model": "logistic"}, ["FUNNEL_HIDDEN", "FUNNEL_LR"]),
        ({"lr": "0.1", "gain_lr": "0.1", "optimizer": "funnel"}, []),
        ({"lr": "0.1", "gain_lr": "0.1", "shadow": "funnel"}, []),
        ({"lr": "0.1", "gain_lr": "0.1", "optimizer": "adam"}, ["FUNNEL_GAIN_LR"]),
        ({"experts": "3", "optimizer": "sgd"}, ["FUNNEL_EXPERTS"]),
        ({"experts": "3", "model": "mlp", "hidden": "8"}, []),
        ({"table_bits": "4"}, []),
        ({"table_bits": "4", "features": "3"}, ["FUNNEL_TABLE_BITS"]),
        ({"table_bits": "4", "schema": "auto", "features": "3"}, ["FUNNEL_FEATURES"]),
    ],
)
def test_settings_without_effect_are_found(options: dict[str, str], idle: list[str]) -> None:
    assert list(load_settings(options).without_effect) == idle


def test_classes_of_rows_are_auto_and_those_of_dense_features_a_number() -> None:
    grown = load_settings({"schema": "auto", "classes": "auto"})
    assert grown.spec == load_settings({"schema": "auto"}).spec
    assert grown.without_effect == {}
    alone = load_settings({"classes": "auto"})
    assert (alone.schema, alone.opens) == ("auto", set())
    with pytest.raises(SettingsError, match="FUNNEL_CLASSES: auto is for rows"):
        load_settings({"classes": "auto", "features": "3"})


@pytest.mark.parametrize(
    ("options", "opens"),
    [
        ({}, {"inputs", "task"}),
        ({"batch_size": "5", "table_bits": "4", "model": "mlp"}, {"inputs", "task"}),
        ({"schema": "auto"}, {"task"}),
        ({"features": "784"}, {"task"}),
        ({"task": "auto"}, {"inputs", "task"}),
        ({"task": "regression"}, {"inputs"}),
        ({"classes": "10"}, set()),
        ({"schema": "auto", "max_classes": "9"}, set()),
        ({"model": "own.module:build"}, set()),
        ({"device": "cuda"}, {"inputs", "task"}),
    ],
)
def test_the_log_decides_if_no_setting_does(options: dict[str, str], opens: set[str]) -> None:
    assert load_settings(options).opens == opens


def test_a_recorded_model_fills_in_what_is_not_set(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    plain = load_settings({"api_key_file": str(key), "seed": "4"})
    rows = load_settings({"schema": "auto", "table_bits": "7", "seed": "3", "optimizer": "adam"})
    taken = plain.taking(rows.spec)
    assert taken.spec == replace(rows.spec, seed=4)
    assert (taken.opens, taken.api_key.get_secret_value()) == (set(), "secret")
    dense = load_settings({"features": "5", "model": "mlp", "hidden": "6", "experts": "2"})
    assert load_settings({"model": "mlp"}).taking(dense.spec).spec == dense.spec
    begun = plain.taking(None, "rows")
    assert begun.spec == load_settings({"schema": "auto", "seed": "4"}).spec
    assert plain.taking(None, "rows:numbers").spec.task == "regression"
    assert plain.taking(None, "features").spec.task == "multiclass"


def test_binary_has_two_classes_unless_their_number_is_set() -> None:
    alone = load_settings({"task": "binary"})
    assert alone.spec.classes == 2
    assert alone.opens == {"inputs"}
    rows = alone.taking(None, "rows")
    assert (rows.spec.task, rows.spec.classes) == ("binary", 0)
    assert load_settings({"task": "binary", "classes": "3"}).spec.classes == 3  # no model has it
    assert load_settings({"task": "regression"}).spec.classes == 0


def test_a_schema_makes_the_spec_one_of_rows(tmp_path: Path) -> None:
    declared = tmp_path / "shop.toml"
    declared.write_text('label = "churn"\n[columns]\nage = "number"\nplan = "category"\n')
    auto = load_settings({"schema": "auto", "max_classes": 7})
    own = load_settings({"schema": str(declared)})
    for settings, columns, most in ((auto, 0, 7), (own, 2, 1_000)):
        spec, found = settings.spec, settings.declared
        assert (spec.shape, spec.features, spec.classes) == (None, 0, 0)
        assert Schema.from_json(orjson.loads(spec.schema)) == Schema()
        assert found is not None
        assert (len(found.columns), found.max_classes) == (columns, most)
    assert load_settings().spec.shape == (784, 10)
    assert own.spec == auto.spec


@pytest.mark.parametrize(
    ("text", "message"),
    [("[columns]\nage = 3", "age"), ("[columns", "not TOML"), (None, "No such file")],
)
def test_a_schema_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, text: str | None, message: str
) -> None:
    declared = tmp_path / "shop.toml"
    if text is not None:
        declared.write_text(text)
    with pytest.raises(SettingsError, match=f"FUNNEL_SCHEMA: .*shop.toml: .*{message}"):
        _ = load_settings({"schema": str(declared)}).declared


def test_a_users_module_takes_no_rows() -> None:
    with pytest.raises(ModelError, match="a model of rows is logistic or mlp"):
        build_state(load_settings({"schema": "auto", "model": "torch.nn:Linear"}))


def test_a_setting_without_effect_is_reported_and_stops_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = make_parser("serve").parse_args(["serve", "--lr", "0.1", "--momentum", "0"])
    assert settings_of(options).lr == 0.1
    expected = "--lr, --momentum without effect: the experts of the pool have their own\n"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"task": "regression", "class_weights": "balanced"}, "the task regression has no classes"),
        ({"promote": "auto"}, "no shadow is set"),
        ({"model": "logistic", "effort": "fast"}, "the model logistic has one family"),
        ({"features": "3", "table_bits": "4"}, "dense features are learned"),
    ],
)
def test_the_reason_is_given_why_a_setting_is_without_effect(
    options: dict[str, str], why: str
) -> None:
    assert list(load_settings(options).without_effect.values()) == [why]


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
    if command == "serve":
        for name in Settings.model_fields:
            assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--port", "x"], "--port: give a whole number"),
        (["serve", "--model", "nowhere:Model"], "nowhere"),
        (["serve", "--device", "cuda:99"], "--device"),
        (["stream", "sea", "--to", "ftp://host"], "ftp"),
        (["demo", "sea", "--optimizer", "x"], "--optimizer: choose one of"),
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
    status = main(arguments)
    errors = capsys.readouterr().err
    assert status == (2 if errors.startswith("funnel: --") else 1)
    assert errors.startswith("funnel: ")
    assert errors.count("\n") == 1
    assert re.search(message, errors)


def test_auto_keeps_the_policies_that_are_recorded(tmp_path: Path) -> None:
    declared = tmp_path / "shop.toml"
    declared.write_text('label = "churn"\nnew_columns = "reject"\n[columns]\nage = "number"\n')
    own, auto = load_settings({"schema": str(declared)}), load_settings({"schema": "auto"})
    assert own.declared is not None
    assert auto.declared is not None
    recorded = Schema().after(Schema().changes_to(own.declared, own.declared_policies))
    assert recorded.label == "churn"
    assert recorded.changes_to(auto.declared, auto.declared_policies) == ()
    limited = load_settings({"schema": "auto", "max_classes": 7})
    assert limited.declared is not None
    [change] = recorded.changes_to(limited.declared, limited.declared_policies)
    assert recorded.after([change]).max_classes == 7


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"labels": "sum"}, "sum adds numbers up, and FUNNEL_TASK is auto: set FUNNEL_TASK=regr"),
        ({"labels": "sum", "task": "binary"}, "FUNNEL_TASK is binary: set FUNNEL_TASK=regression"),
        ({"label_timeout": "weighted:no"}, "weighted is for two classes: set FUNNEL_TASK=binary"),
        ({"label_timeout": "weighted:0", "task": "regression"}, "set FUNNEL_TASK=binary"),
        ({"label_timeout": "weighted:", "task": "binary"}, "or weighted:no"),
        ({"label_timeout": "weighted", "task": "binary"}, "or weighted:no"),
        ({"label_timeout": "30m:no,weighted", "task": "binary"}, "give weighted:no"),
        (
            {"label_timeout": "weighted:no", "task": "binary", "labels": "last"},
            "weighted learns the first label alone: set FUNNEL_LABELS=first",
        ),
        (
            {"label_timeout": "weighted:0", "task": "regression", "labels": "sum"},
            "weighted learns the first label alone: set FUNNEL_LABELS=first",
        ),
    ],
)
def test_labels_that_the_task_does_not_have_are_refused_with_what_to_set(
    given: dict[str, object], reason: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(reason)):
        load_settings(given)


def test_labels_add_up_for_numbers_and_negatives_are_weighted_for_two_classes() -> None:
    for task in ("regression", "quantile:0.1,0.9"):
        assert load_settings({"labels": "sum", "task": task}).labels == "sum"
    found = load_settings({"label_timeout": "weighted:no", "task": "binary", "label_ttl": "7d"})
    assert found.label_timeout == "weighted:no"


@pytest.mark.parametrize("value", ["", "7", "always", "7d,8d", "1GB,2GB", "0d", "7d,,1GB", "OFF"])
def test_an_archive_is_bounded_by_an_age_a_size_or_both(value: str) -> None:
    with pytest.raises(SettingsError, match="FUNNEL_ARCHIVE: give "):
        load_settings({"archive": value})
