"""The client's names are in `funnel`, and cost nothing until they are used."""

import subprocess
import sys

import pytest

import funnel

ALONE = """
import sys, funnel
assert not [name for name in ("streams", "httpx", "pyarrow") if name in sys.modules]
sys.modules["httpx"] = None
try:
    funnel.Client
except ImportError as error:
    print(error)
"""


def test_funnel_alone_imports_no_client_and_says_what_one_needs() -> None:
    ran = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == (
        "funnel.Client needs httpx, which is not installed: pip install 'funnel-stream[client]'"
    )


def test_every_name_is_there() -> None:
    assert all(getattr(funnel, name).__name__ == name for name in funnel._ELSEWHERE)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = funnel.Nothing
