"""The ``FUNNEL_*`` variables of the environment, as they were meant.

Files of variables pass on quotes and spaces that a shell would remove. A container platform adds
variables of its own: those of a service that is called ``funnel``, or ``funnel-redis``, begin with
``FUNNEL_`` too.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from streams.errors import FunnelError

PREFIX = "FUNNEL_"
LINK = re.compile(
    r"FUNNEL_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
"""The name alone says that Kubernetes or ``docker --link`` made the variable."""
LINKED_PORT = re.compile(r"(?:tcp|udp|sctp)://.+")
"""The value of ``FUNNEL_PORT``, or ``FUNNEL_…_PORT``, that a platform made."""
LINKED_NAME = re.compile(r"/\S+/\S+")
"""The value of ``FUNNEL_NAME``, or ``FUNNEL_…_NAME``, that ``docker --link`` made."""
LINKED_ENVIRONMENT = re.compile(r"(FUNNEL(?:_\w+?)?)_ENV_\w+")
"""A variable of the linked container; there is a name then, too."""


NAMED_KEY = re.compile(r"([A-Za-z][\w.-]{0,63}):(\S+)")
"""A key with a name, such as ``ops:s3cret``."""


class PathError(FunnelError, ValueError):
    """A path cannot be resolved or read; the message says why."""


def variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that begin with ``FUNNEL_``, but no service links.

    Spaces around a value, and one pair of quotes around it, are removed.

    Args:
        environment: all variables.

    >>> variables({"FUNNEL_HOST": " '::1' ", "FUNNEL_PORT": "tcp://10.0.0.1:8000"})
    {'FUNNEL_HOST': '::1'}
    """
    return {
        name: clean(value)
        for name, value in environment.items()
        if name.upper().startswith(PREFIX) and not _is_link(name, environment)
    }


def clean(value: str) -> str:
    """Return a value without the spaces and the pair of quotes around it."""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].strip()
    return value


def home(path: str | Path) -> Path:
    """Return a path with its ``~``, which no shell has replaced, replaced by the home directory.

    Raises:
        PathError: there is no home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PathError(f"{path} has no meaning here: no home directory is known") from error


def read_secret(path: str | Path) -> str:
    """Return the text of a file, such as a secret of a container, without the spaces around it.

    Raises:
        PathError: the file cannot be read, or holds nothing.
    """
    try:
        text = home(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PathError(f"{path} cannot be read: {error}") from error
    if not text:
        raise PathError(f"{path} is empty")
    return text


def secret(name: str, environment: Mapping[str, str]) -> str:
    """Return a variable, or what the file holds that the variable ``…_FILE`` names; empty if none.

    Args:
        name: of the variable.
        environment: as `variables` returns it.

    Raises:
        PathError: the file cannot be read, or holds nothing.
    """
    file = environment.get(f"{name}_FILE", "")
    return environment.get(name) or (read_secret(file) if file else "")


def named_keys(text: str, name: str) -> dict[str, str]:
    """Return keys by their names.

    Args:
        text: ``name:key``, several with commas; or one key without a name.
        name: of a key without one.

    Raises:
        ValueError: a name or a key comes twice, or only some of several have a name.

    >>> named_keys("ops:one,ann:two", "API_KEY"), named_keys("s3cret", "API_KEY")
    ({'ops': 'one', 'ann': 'two'}, {'API_KEY': 's3cret'})
    """
    parts = [part.strip() for part in text.split(",")]
    found = [NAMED_KEY.fullmatch(part) for part in parts]
    if not any(found):
        return {name: text} if text else {}
    keys = {own[1]: own[2] for own in found if own}
    if not all(found):
        raise ValueError("give each of several keys a name: name:key,name:key")
    if len(set(keys.values())) < len(parts):
        raise ValueError("a name or a key comes twice")
    return keys


def first_key(name: str, environment: Mapping[str, str]) -> str:
    """Return the key of a variable, of several the first; empty if there is none.

    Args:
        name: of the variable.
        environment: as `variables` returns it.

    Raises:
        PathError: its file cannot be read, or holds nothing.
        ValueError: `named_keys` cannot read it.
    """
    return next(iter(named_keys(secret(name, environment), name).values()), "")


def _is_link(name: str, environment: Mapping[str, str]) -> bool:
    value = environment.get(name, "")
    if linked := LINKED_ENVIRONMENT.fullmatch(name):
        owner = f"{linked[1]}_NAME"
        return owner in environment and _is_link(owner, environment)
    return bool(
        LINK.fullmatch(name)
        or (name.endswith("_PORT") and LINKED_PORT.fullmatch(value))
        or (name.endswith("_NAME") and LINKED_NAME.fullmatch(value))
    )
