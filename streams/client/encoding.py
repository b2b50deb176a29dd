"""JSON of what users hold: numbers of numpy, times, missing values of pandas."""

import datetime
from collections.abc import Mapping

import numpy as np
import orjson

from streams.client.errors import InvalidExamples

JSON = "application/json"
OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATACLASS


def to_json(content: object, field: str) -> bytes:
    """Return JSON; NaN becomes null, which is a missing value.

    Args:
        content: dictionaries, lists and values.
        field: what it is, for the error.

    Raises:
        InvalidExamples: a value has no form in JSON.
    """
    try:
        return orjson.dumps(content, default=_other, option=OPTIONS)
    except TypeError as error:
        raise InvalidExamples(str(error), field=field) from error


def _other(value: object) -> object:
    """Return a value as JSON has it."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    if type(value).__name__ in ("NAType", "NaTType"):  # a time, too, by its class
        return None
    if isinstance(value, datetime.date):  # and the classes made of it, such as pandas' Timestamp
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__} cannot be sent: {value!r}")
