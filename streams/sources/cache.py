"""The folder of data sets that were fetched."""

import os
from pathlib import Path

from streams.environment import home, variables
from streams.errors import FunnelError


class DataUnavailableError(FunnelError, RuntimeError):
    """No source has the data; the message says what was tried and what to do."""


def folder_of(name: str) -> Path:
    """Return the folder of a data set, unless its loader is given another.

    It is in `$FUNNEL_DATA_DIR` if that is set, otherwise in `~/.cache/funnel`.

    Args:
        name: of the set.

    Raises:
        PathError: no home directory is known, and no variable names another folder.
    """
    if data := variables().get("FUNNEL_DATA_DIR"):
        return home(data) / name
    return home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "funnel" / name
