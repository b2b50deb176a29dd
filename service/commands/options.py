"""Options for the settings, and their meaning."""

import argparse
import sys
from collections.abc import Collection
from typing import Literal, get_args, get_origin

from pydantic import SecretStr

from service.commands.typed import as_typed, option_of
from service.settings import KEYS, SECRETS, Settings, load_settings
from streams.environment import PREFIX

TOPICS = {
    "model": (
        "name", "model", "task", "features", "classes", "schema", "max_classes", "table_bits",
        "hidden", "standardize", "calibrate", "seed",
    ),
    "optimizer": (
        "optimizer", "experts", "families", "effort", "lr", "gain_lr", "scale_lr", "momentum",
        "loss_guard", "shadow", "promote", "class_weights", "batch_size",
    ),
    "processes": ("role", "workers", "snapshot_every"),
    "computing": ("device", "threads"),
    "log and checkpoints": (
        "redis_url", "redis_url_file", "data_dir", "state", "archive", "appendfsync", "max_wait_ms",
        "max_backlog", "max_backlog_bytes", "checkpoint_every_seconds",
        "checkpoint_every_bytes", "lease_seconds", "accept_gap",
    ),
    "labels that come later": (
        "label_ttl", "label_grace", "labels", "label_timeout", "join_bytes", "track",
    ),
    "messages": ("log_format", "log_level"),
    "HTTP": (
        "host", "allowed_hosts", "port", "api_key", "api_key_file", "learn_key", "learn_key_file",
        "predict_key", "predict_key_file", "predict_ms", "max_body_bytes", "drift_webhook",
        "drift_webhook_file", "drift_webhook_secret", "drift_webhook_secret_file",
        "drift_webhook_form",
    ),
}  # fmt: skip
"""Every setting, by the heading under which help shows it."""


def add_settings(
    parser: argparse.ArgumentParser,
    topics: Collection[str] = TOPICS,
    without: Collection[str] = (),
) -> None:
    """Add an option for every setting that a command uses.

    Args:
        parser: where to.
        topics: keys of `TOPICS`.
        without: settings of these topics that the command does not use.
    """
    for topic in topics:
        group = parser.add_argument_group(topic)
        for name in TOPICS[topic]:
            if name not in without:
                _add(group, name)


def _add(group: argparse._ArgumentGroup, name: str) -> None:
    """Add the option of one setting."""
    field = Settings.model_fields[name]
    default = field.get_default()
    is_flag = isinstance(default, bool)
    line = f"{field.description} [{_shown(default) or 'none'}]".replace("%", "%%")
    if name in KEYS:
        line = argparse.SUPPRESS  # ps would show the key to every user
    elif name in SECRETS:
        variable = PREFIX + name.upper()
        line += f"; ps shows this option to every user: prefer {variable} or {variable}_FILE"
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    group.add_argument(
        option_of(name),
        dest=f"setting_{name}",
        nargs="?" if is_flag else None,
        const="true" if is_flag else None,
        metavar="BOOL" if is_flag else "|".join(choices) or name.rpartition("_")[2].upper(),
        help=line,
    )


def _shown(default: object) -> str:
    """Return a default as help and documents show it; empty for a secret or no value."""
    if default is None or isinstance(default, SecretStr):
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def settings_of(options: argparse.Namespace, **defaults: object) -> Settings:
    """Return the settings that the options give; report those that have no effect.

    Args:
        options: parsed by a parser that `add_settings` has filled.
        defaults: values of settings that the options do not give.

    Raises:
        SettingsError: a setting is wrong.
    """
    given = {
        name: value
        for name in Settings.model_fields
        if (value := getattr(options, f"setting_{name}", None)) is not None
    }
    settings = load_settings(defaults | given)
    for name in (name for name in KEYS if name in given):
        variable = PREFIX + name.upper()
        sys.stderr.write(
            f"funnel: {option_of(name)}: ps shows the key to every user of this machine; set "
            f"{variable}, or {variable}_FILE to a file that holds it\n"
        )
    typed = {option_of(name) for name in given}
    reasons: dict[str, list[str]] = {}
    for variable, why in settings.without_effect.items():
        reasons.setdefault(why, []).append(variable)
    for why, variables in reasons.items():
        names = as_typed(", ".join(variables), typed)
        sys.stderr.write(f"funnel: {names} without effect: {why}\n")
    return settings
