"""Where the model of all families can be, and where it is the default.

Settings that name no model mean `auto`. In Funnel 0.1 they meant `logistic`, by which its log's
keys and its checkpoints are named: where either is found, that model continues, since its producers
write to those keys. It is the default, too, for settings that `auto` does not fit. A model of all
families that has begun continues as well: neither another's log nor a setting puts an empty model
in its place. Checkpoints count before logs, because other services may share the server.
"""

import logging
from pathlib import Path

import torch

from service.fold.networks import find_device
from service.log.keys import Keys
from service.log.server import has_cuts, has_log
from service.settings import INPUTS, Settings, SettingsError
from streams.batch import DEFAULT_MODEL, FORMER_MODEL
from streams.errors import FunnelError

MOST_FEATURES, MOST_CLASSES, MOST_ANSWERS = 10_000, 1_000, 2_000_000
"""Limits of the model of all families; the last is of examples of a batch times classes."""

logger = logging.getLogger("funnel")


class NothingPublishedError(FunnelError):
    """A process that only answers has no model to answer with yet."""


def folder_of(data_dir: Path, model: str) -> Path:
    """Return the folder of a model's checkpoints."""
    return data_dir / "checkpoints" / model.replace(":", "-")


def misfit(settings: Settings, device: torch.device) -> str:
    """Return why all families cannot learn what the settings describe; nothing if they can.

    Args:
        settings: of a service.
        device: that it uses.
    """
    if settings.optimizer != "pool":
        return (
            f"FUNNEL_MODEL=auto is a pool: leave FUNNEL_OPTIMIZER={settings.optimizer} unset, or "
            "choose logistic or mlp"
        )
    is_named = bool(settings.schema)
    may_be_named = INPUTS in settings.opens and "model" not in settings.model_fields_set
    bounds = [] if is_named else [("FEATURES", settings.features, MOST_FEATURES)]
    classes = 0
    if not settings.predicts.is_numeric:
        counts = {"CLASSES": settings.classes, "MAX_CLASSES": settings.max_classes}
        own = [*["CLASSES"] * (not is_named), *["MAX_CLASSES"] * (is_named or may_be_named)]
        bounds += [(name, counts[name], MOST_CLASSES) for name in own]
        classes = max(counts[name] for name in own)
    for name, value, most in bounds:
        if value > most:
            return (
                f"FUNNEL_MODEL=auto remembers 8,192 examples whole, and takes at most {most:,} as "
                f"FUNNEL_{name}, not {value:,}; choose logistic or mlp"
            )
    if settings.batch_size * classes > MOST_ANSWERS:
        return (
            f"FUNNEL_MODEL=auto takes a kilobyte for each class and example of a batch: lower "
            f"FUNNEL_BATCH_SIZE to {MOST_ANSWERS // classes:,}"
        )
    if device.type != "cpu":
        return (
            f"trees and neighbours learn on the CPU, not on {device}: set FUNNEL_DEVICE=cpu, or "
            "FUNNEL_MODEL to logistic or mlp"
        )
    return ""


def named(settings: Settings) -> Settings:
    """Return settings that say which model it is, for work without a log, or with a new one.

    Raises:
        ModelError: the device cannot be used.
    """
    if "model" in settings.model_fields_set:
        return settings
    return _naming(
        settings, FORMER_MODEL if misfit(settings, find_device(settings.device)) else DEFAULT_MODEL
    )


async def as_found(settings: Settings, url: str) -> Settings:
    """Return settings that say which model it is. Without a model and a name, it is that which the
    data folder or the log has.

    A model of all families is returned even where the settings do not fit it: its start then fails,
    and the message says which setting to change.

    Args:
        settings: of the service.
        url: of the log's server.

    Raises:
        LogUnavailable: they name none, and the log cannot be asked.
        UnreadableError: they name none, and the object storage cannot be asked.
        SettingsError: the address of the object storage cannot be used.
        ModelError: the device cannot be used.
    """
    if "model" in settings.model_fields_set or settings.name:
        return named(settings)
    for model in (FORMER_MODEL, DEFAULT_MODEL):
        folder = folder_of(settings.data_dir, model)
        if settings.state and _is_stored(settings.state, folder.name):
            return _continuing(settings, model, f"{settings.state} has its checkpoints")
        if any(folder.glob("*.safetensors")):
            return _continuing(settings, model, f"{folder} has its checkpoints")
    for model in (FORMER_MODEL, DEFAULT_MODEL):
        if await has_log(url, model):
            return _continuing(settings, model, f"{Keys(model).log} is its log")
    if reason := misfit(settings, find_device(settings.device)):
        logger.info("the model is %s: %s", FORMER_MODEL, reason)
    return _naming(settings, FORMER_MODEL if reason else DEFAULT_MODEL)


def as_published(settings: Settings) -> Settings:
    """Return settings that say which model it is, for a process that only answers.

    Args:
        settings: of the service. Without a model and a name, it is that which the data folder or
            the object storage has.

    Raises:
        NothingPublishedError: there is no model yet.
        UnreadableError: the object storage cannot be asked.
        SettingsError: the address of the object storage cannot be used.
        ModelError: the device cannot be used.
    """
    is_named = "model" in settings.model_fields_set or bool(settings.name)
    for model in [settings.called] if is_named else [FORMER_MODEL, DEFAULT_MODEL]:
        folder = folder_of(settings.data_dir, model)
        if settings.state:
            has_any = _is_stored(settings.state, folder.name)
        else:
            has_any = any(folder.rglob("*.safetensors"))
        if has_any:
            return named(settings) if is_named else _naming(settings, model)
    place = settings.state or settings.data_dir.absolute()
    raise NothingPublishedError(
        f"no model is in {place} yet. A learner with the same FUNNEL_STATE or FUNNEL_DATA_DIR, and "
        "the same FUNNEL_NAME, writes one"
    )


async def as_begun(settings: Settings, url: str) -> Settings:
    """Return settings that say which model it is, for a process that only takes examples.

    Args:
        settings: of the service. Without a model and a name, it is that of which the server has the
            log.
        url: of the log's server.

    Raises:
        NothingPublishedError: nothing was learned from the log yet.
        LogUnavailable: the log cannot be asked.
        ModelError: the device cannot be used.
    """
    is_named = "model" in settings.model_fields_set or bool(settings.name)
    names = [settings.called] if is_named else [FORMER_MODEL, DEFAULT_MODEL]
    for model in names:
        if await has_cuts(url, model):
            return named(settings) if is_named else _naming(settings, model)
    logs = " and ".join(Keys(name).log for name in names)
    raise NothingPublishedError(
        f"nothing was learned from {logs} yet: start the learner, and send the first examples to it"
    )


def _is_stored(state: str, folder: str) -> bool:
    from service.trainer.objects.bucket import AddressError, has_objects

    try:
        return has_objects(state, folder)
    except AddressError as error:
        raise SettingsError(f"FUNNEL_STATE: {error}") from error


def _continuing(settings: Settings, model: str, reason: str) -> Settings:
    if model == FORMER_MODEL:
        logger.info("the model is %s: %s, and FUNNEL_MODEL is not set", model, reason)
    return _naming(settings, model)


def _naming(settings: Settings, model: str) -> Settings:
    return settings.model_copy(update={"model": model})
