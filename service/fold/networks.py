"""The models that can be served: maps from fp32 [n, features] to logits [n, classes]."""

import copy
import functools
import importlib
import logging
import math
from collections.abc import Sequence

import torch
from torch import nn

from streams.errors import FunnelError

logger = logging.getLogger("funnel")

BUILT_IN = ("logistic", "mlp")


class ModelError(FunnelError, ValueError):
    """A model that cannot be built; the message says why."""


def find_device(name: str) -> torch.device:
    """Return the device ``name``; for ``auto``, a GPU if there is one.

    Raises:
        ModelError: the device cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"FUNNEL_DEVICE: {name!r} cannot be used: {reason}") from error
    return device


def build(name: str, features: int, classes: int, hidden: Sequence[int], seed: int) -> nn.Module:
    """Return a model with freshly initialized weights, on the CPU.

    Args:
        name: ``logistic``; ``mlp`` (ReLU); or ``package.module:factory``, a callable that is
            given ``features`` and ``classes`` by name and returns any module.
        features: width of the inputs.
        classes: width of the logits.
        hidden: sizes of the hidden layers of ``mlp``.
        seed: of the initialization.

    Raises:
        ModelError: the factory cannot be imported or called, or what it makes is not a module
            with fp32 parameters that maps [n, features] to [n, classes].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "logistic":
            return _zeroed(nn.Linear(features, classes))
        if name == "mlp":
            return _perceptron(features, classes, hidden)
        model = _from_factory(name, features, classes)
        _try(model, name, features, classes)
    return model


def _zeroed(layer: nn.Linear) -> nn.Linear:
    """Start from equal odds: every class has the probability 1 / classes."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _perceptron(features: int, classes: int, hidden: Sequence[int]) -> nn.Module:
    layers: list[nn.Module] = []
    width = features
    for size in hidden:
        layer = nn.Linear(width, size)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / width))  # He et al. 2015
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
        width = size
    return nn.Sequential(*layers, _zeroed(nn.Linear(width, classes)))


def _from_factory(name: str, features: int, classes: int) -> nn.Module:
    module, separator, attribute = name.partition(":")
    if not separator:
        raise ModelError(
            f"no model {name!r}: choose {', '.join(BUILT_IN)} or package.module:factory"
        )
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"model {name!r} cannot be imported: {error}") from error
    try:
        model = factory(features=features, classes=classes)
    except Exception as error:
        raise ModelError(
            f"{name}(features={features}, classes={classes}) failed: {error!r}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned a {type(model).__name__}, expected a torch.nn.Module")
    return model


def _try(model: nn.Module, name: str, features: int, classes: int) -> None:
    """Check that the module is a model, before it gets any data."""
    for key, tensor in model.named_parameters():
        if tensor.dtype != torch.float32:
            raise ModelError(f"{name}: parameter {key!r} is {tensor.dtype}, expected float32")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"{name} has no parameters to learn")
    tried = copy.deepcopy(model)
    try:
        tried.train()(torch.zeros(2, features))
        with torch.no_grad():
            logits = tried.eval()(torch.zeros(2, features))
    except Exception as error:
        raise ModelError(f"{name} cannot take inputs [2, {features}]: {error!r}") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"{name} maps [2, {features}] to {got}, expected logits [2, {classes}]")
    try:
        tried.train()(torch.zeros(1, features))
    except Exception as error:
        _warn(
            f"{name} raises on a single example, as nn.BatchNorm1d does ({error}); batches of one "
            "will be skipped: raise --max-wait-ms, so that batches fill up"
        )


@functools.cache
def _warn(message: str) -> None:
    """Log a message once, although every learner builds such a model."""
    logger.warning(message)
