"""The models that can be served: maps from fp32 [n, features] to outputs, such as logits."""

import importlib
import inspect
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

import funnel
from streams.errors import FunnelError

logger = logging.getLogger("funnel")

AUTO = "auto"
"""The model of all families (`funnel.families`); its leading pool is that of ``logistic``."""
BUILT_IN = ("logistic", "mlp", AUTO)
LONGEST_REASON = 300
"""Characters of another's error that a message repeats."""

SHARED_SETTINGS: dict[str, tuple[Callable[[], object], Callable[..., object]]] = {
    "set_default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "set_default_device": (torch.get_default_device, torch.set_default_device),
    "set_num_threads": (torch.get_num_threads, torch.set_num_threads),
    "set_grad_enabled": (torch.is_grad_enabled, torch.set_grad_enabled),
}
"""Settings of torch that hold in the whole process or thread: what reads and what sets each."""
OF_MACHINE = ("DefaultCPUAllocator", "CUDA error", "CUDA out of memory", "_STATUS_")
"""Parts of the messages of the RuntimeErrors that torch raises for memory and libraries of CUDA."""


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


def build(name: str, features: int, outputs: int, hidden: Sequence[int], seed: int) -> nn.Module:
    """Return a model with freshly initialized weights, on the CPU.

    Args:
        name: ``logistic``, or ``auto``; ``mlp`` (ReLU); or ``package.module:factory``, a callable
            that is given ``features`` and, as ``classes``, the outputs, and returns any module.
            That module is not checked (see `service.fold.trial`).
        features: width of the inputs.
        outputs: their number, as `service.fold.task.Task.outputs` has it: one for each class, say.
        hidden: sizes of the hidden layers of ``mlp``.
        seed: of the initialization.

    Raises:
        ModelError: the factory cannot be imported or called, or does not return a module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in BUILT_IN:
            try:
                if name != "mlp":
                    return _zeroed(nn.Linear(features, outputs))
                return _perceptron(features, outputs, hidden)
            except (RuntimeError, MemoryError, TypeError, OverflowError) as error:
                sizes = " × ".join(f"{size:,}" for size in (features, *hidden, outputs))
                raise ModelError(
                    f"there is no memory for the model {name} of {sizes}: {reason_of(error)}"
                ) from error
        with settings_kept(name):
            return _made_by(imported(name), name, features, outputs)


def _zeroed(layer: nn.Linear) -> nn.Linear:
    """Start from equal odds: every class has the probability 1 / classes."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _perceptron(features: int, outputs: int, hidden: Sequence[int]) -> nn.Module:
    layers: list[nn.Module] = []
    width = features
    for size in hidden:
        layer = nn.Linear(width, size)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / width))  # He et al. 2015
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
        width = size
    return nn.Sequential(*layers, _zeroed(nn.Linear(width, outputs)))


def imported(name: str, kind: str = "model") -> Callable[..., object]:
    """Import what ``package.module:factory`` names.

    Args:
        name: of the factory.
        kind: of what it makes, in words.

    Raises:
        ModelError: it cannot be imported; the message says why.
    """
    path, separator, attribute = name.partition(":")
    if not separator:
        raise ModelError(
            f"no model {name!r}: choose {', '.join(BUILT_IN)} or package.module:factory"
        )
    cannot = f"{kind} {name!r} cannot be imported:"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise ModelError(f"{cannot} {reason_of(error)}") from error
        raise ModelError(
            f"{cannot} no module named {error.name!r}; it is neither in {Path.cwd()} nor installed"
            f"{_hint(path)}"
        ) from error
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise ModelError(f"{cannot} {reason_of(error)}") from error
    hint = _hint(path)
    if (factory := getattr(module, attribute, None)) is None:
        raise ModelError(f"{cannot} {_file_of(module)} has no {attribute!r}{hint}")
    if hint:
        logger.warning("%s %r is taken from %s%s", kind, name, _file_of(module), hint)
    if not callable(factory):
        raise ModelError(
            f"{kind} {name!r} is of type {type(factory).__name__}, expected a function"
        )
    made: Callable[..., object] = factory
    return made


def _file_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or f"Python's own module {module.__name__!r}"


def _hint(path: str) -> str:
    """Return which file of the working directory another module of its name hides, if one does."""
    top = path.partition(".")[0]
    folder = Path(top) if any(Path(top).glob("*.py")) else Path(top, "__init__.py")
    mine = next((file.resolve() for file in (Path(f"{top}.py"), folder) if file.exists()), None)
    try:
        imported = importlib.import_module(top)
    except (Exception, SystemExit):  # the caller has reported it
        return ""
    found = getattr(imported, "__file__", None)
    places = (
        [Path(found).resolve()] if found else list(map(Path, getattr(imported, "__path__", ())))
    )
    if mine is None or any(mine in (place, *place.parents) for place in places):
        return ""
    return f". {_file_of(imported)} hides your {mine}: rename yours"


def made_by(factory: Callable[..., object], name: str, **given: object) -> object:
    """Return what a user's factory makes.

    Args:
        factory: as imported.
        name: of it.
        given: its arguments.

    Raises:
        ModelError: it does not take them, or raises.
    """
    call = f"{name}({', '.join(f'{k}={v}' for k, v in given.items())})"
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise ModelError(
            f"{call} failed: it must take the parameters {' and '.join(given)}: {error}"
        ) from error
    except ValueError:
        logger.debug("%s has no signature that Python can read", name)
    try:
        return factory(**given)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise ModelError(f"{call} failed: {reason_of(error)}") from error


def _made_by(factory: Callable[..., object], name: str, features: int, classes: int) -> nn.Module:
    model = made_by(factory, name, features=features, classes=classes)
    if isinstance(model, type):
        raise ModelError(f"{name} returned the class {model.__name__}; return a module made of it")
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned {described(model)}, expected a torch.nn.Module")
    return model


def described(found: object) -> str:
    """Return the type of a value, in words."""
    return "None" if found is None else f"a {type(found).__name__}"


def reason_of(error: BaseException) -> str:
    """Return an exception that a user's code has raised as one line, with its place in that code.

    Args:
        error: as it was caught.
    """
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}, line {error.lineno})"
    text = " ".join(str(error).split())[:LONGEST_REASON]
    others = {Path(root).parent for root in (torch.__file__, funnel.__file__, __file__)}
    python = {Path(traceback.__file__).parent, Path(importlib.__file__).parent, Path()}
    places = [
        f" ({frame.filename}, line {frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if (path := Path(frame.filename)).parent not in python and others.isdisjoint(path.parents)
    ]
    place = places[-1] if places else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def origin_of(error: BaseException) -> str:
    """Return the type of an exception and the line that raised it, which name few errors.

    A text would not do: it may hold values of a client.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return type(error).__name__ + place


def is_of_machine(error: BaseException) -> bool:
    """Return whether the machine failed, and not the module: another try may succeed.

    Args:
        error: what a pass through a user's module has raised.
    """
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError, OSError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OF_MACHINE)


@contextmanager
def settings_kept(name: str) -> Iterator[None]:
    """Refuse a model that changes settings of torch that the whole process shares.

    Args:
        name: of the model.

    Raises:
        ModelError: it has changed one, which is as before then.
    """
    before = {setting: read() for setting, (read, _) in SHARED_SETTINGS.items()}
    try:
        yield
    finally:
        changed = ""
        for setting, (read, write) in SHARED_SETTINGS.items():
            if (now := read()) != (was := before[setting]):
                write(was)
                changed = f"from {was} to {now}: remove torch.{setting}"
        if changed:
            raise ModelError(f"{name} changes a setting that the whole service shares, {changed}")
