"""The log of the process, for people or for programs that collect logs."""

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

import orjson

REQUEST: ContextVar[str] = ContextVar("request", default="")
"""Id of the request that is being answered; empty outside of requests."""


class TextFormatter(logging.Formatter):
    """Lines for people, which end with the request's id if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line without a traceback."""
        line, request = super().formatMessage(record), REQUEST.get()
        return f"{line} [request {request}]" if request else line


class JSONFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, and if there is one the
    ``request``'s id and the traceback of an ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := REQUEST.get():
            found["request"] = request
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(found).decode()


def configure(is_json: bool, level: str) -> None:
    """Write the log of the process to standard error from now on.

    Args:
        is_json: whether programs read it.
        level: name of the least level, such as ``info``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if is_json else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns about all that is not HTTP
