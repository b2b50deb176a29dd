"""Golden files: reading, writing and comparing them."""

import difflib
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def read(path: Path) -> Any:
    """Return what a golden file holds, None if there is none yet."""
    return json.loads(path.read_text()) if path.exists() else None


def write(path: Path, value: object) -> None:
    """Write a golden file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(value))


def text_of(value: object) -> str:
    """Return a value as the text of a golden file: one line for each short list or number."""
    return _lines(json.loads(json.dumps(value)), "") + "\n"


def _lines(value: Any, indent: str) -> str:
    short = json.dumps(value, ensure_ascii=False, sort_keys=True)
    if len(indent) + len(short) <= 90 or not value or not isinstance(value, dict | list):
        return short
    inner = indent + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(k)}: {_lines(v, inner)}" for k, v in sorted(value.items())]
        return "{\n" + ",\n".join(inner + item for item in items) + "\n" + indent + "}"
    return "[\n" + ",\n".join(inner + _lines(v, inner) for v in value) + "\n" + indent + "]"


def difference(golden: object, found: object) -> str:
    """Return how a value differs from the golden one, as lines with - and +; empty if it does not.

    If the change is intended, run ``python -m tests.golden.record``, and give the reason in the
    commit's message.
    """
    before, after = text_of(golden).splitlines(), text_of(found).splitlines()
    lines = difflib.unified_diff(before, after, "golden", "found", lineterm="", n=4)
    return "\n".join(lines)
