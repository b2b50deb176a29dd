"""The messages between the learner's process and a worker, each a line of JSON.

The learner's process writes the settings first, and then its status whenever it changes. A worker
writes the counts of its metrics.
"""

from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr

from service.log.backlog import Learned
from service.log.position import Position
from service.monitoring.status import Condition, Status, Upstream
from service.monitoring.totals import Counts
from service.settings import FILE, Settings


def of_settings(settings: Settings, **changed: object) -> bytes:
    """Return the line with all settings that are set, secrets too.

    Args:
        settings: of the service.
        changed: values of settings that a worker has otherwise.
    """
    names = {name for name in settings.model_fields_set if not name.endswith(FILE)}
    given = {name: getattr(settings, name) for name in names} | changed
    return orjson.dumps({name: _plain(value) for name, value in given.items()}) + b"\n"


def _plain(value: object) -> object:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, Path) else value


def to_settings(line: bytes) -> Settings:
    """Return the settings that a line holds."""
    return Settings(**orjson.loads(line))


def of_status(status: Status) -> bytes:
    """Return the line with what a worker has to know of the learner's status."""
    learned = status.learned
    position = str(learned.position)
    counts = learned.entries, learned.added, learned.mean_examples, learned.mean_bytes
    return orjson.dumps([status.condition, status.reason, position, *counts]) + b"\n"


def to_upstream(line: bytes) -> Upstream:
    """Return the status that a line holds."""
    condition, reason, position, *counts = orjson.loads(line)
    return Upstream(Condition(condition), reason, Learned(Position.parse(position), *counts))


def of_counts(counts: Counts) -> bytes:
    """Return the line with the counts of a worker's metrics."""
    return orjson.dumps(counts) + b"\n"


def to_counts(line: bytes) -> Counts:
    """Return the counts that a line holds."""
    found: list[Any] = orjson.loads(line)
    return [(str(name), dict(labels), float(value)) for name, labels, value in found]
