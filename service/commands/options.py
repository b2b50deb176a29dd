"""Options for the settings, and their meaning."""

import argparse
import sys
from collections.abc import Collection

from pydantic import SecretStr

from service.settings import SECRETS, Settings, load_settings
from streams.environment import PREFIX

TOPICS = {
    "model": (
        "model", "task", "features", "classes", "schema", "max_classes", "table_bits", "hidden",
        "standardize", "calibrate", "seed",
    ),
    "optimizer": (
        "optimizer", "experts", "effort", "lr", "gain_lr", "scale_lr", "momentum", "loss_guard",
        "shadow", "class_weights", "batch_size",
    ),
    "computing": ("device", "threads"),
    "log and checkpoints": (
        "redis_url", "redis_url_file", "data_dir", "appendfsync", "max_wait_ms", "max_backlog",
        "max_backlog_bytes", "checkpoint_every_seconds", "checkpoint_every_bytes", "lease_seconds",
        "accept_gap",
    ),
    "HTTP": (
        "host", "allowed_hosts", "port", "api_key", "api_key_file", "learn_key", "learn_key_file",
        "predict_key", "predict_key_file", "max_body_bytes", "drift_webhook", "drift_webhook_file",
    ),
}  # fmt: skip
"""Every setting, by the heading under which help shows it."""


def add_settings(parser: argparse.ArgumentParser, topics: Collection[str] = TOPICS) -> None:
    """Add an option for every setting; help shows those of ``topics``, keys of `TOPICS`."""
    groups = {topic: parser.add_argument_group(topic) for topic in TOPICS}
    topic_of = {name: topic for topic, names in TOPICS.items() for name in names}
    for name, field in Settings.model_fields.items():
        default, topic = field.get_default(), topic_of[name]
        is_flag = isinstance(default, bool)
        line = f"{field.description} [{_shown(default) or 'none'}]".replace("%", "%%")
        if name in SECRETS:
            variable = PREFIX + name.upper()
            line += f"; ps shows this option to every user: prefer {variable} or {variable}_FILE"
        groups[topic].add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"setting_{name}",
            nargs="?" if is_flag else None,
            const="true" if is_flag else None,
            metavar="BOOL" if is_flag else name.rpartition("_")[2].upper(),
            help=line if topic in topics else argparse.SUPPRESS,
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
    if idle := settings.without_effect:
        sys.stderr.write(
            f"funnel: {', '.join(idle)} without effect: model {settings.model} with optimizer "
            f"{settings.optimizer} does not use it\n"
        )
    return settings
