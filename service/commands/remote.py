"""Requests of the commands to a running service."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from streams.environment import first_key, variables
from streams.errors import FunnelError

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
SECONDS = 60.0
"""Longest wait for an answer."""
CONNECT_SECONDS = 5.0
KEYS = {
    "api": "the key is FUNNEL_API_KEY of the environment, or in the file that FUNNEL_API_KEY_FILE "
    "names",
    "read": "the key is FUNNEL_PREDICT_KEY or FUNNEL_API_KEY of the environment, or in the file "
    "that one of them with _FILE names",
}
"""Where a command takes its key from, in words."""


class RemoteError(FunnelError, RuntimeError):
    """A service does not answer, or refuses a request; the message says why."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--to``, the address of a service."""
    parser.add_argument(
        "--to", default=DEFAULT_URL, metavar="URL", help=f"address of the service [{DEFAULT_URL}]"
    )


def key(*scopes: str) -> str:
    """Return the first key that the environment has; empty if it has none.

    Args:
        scopes: ``API``, ``LEARN`` or ``PREDICT``, in order.
    """
    environment = variables()
    found = (first_key(f"FUNNEL_{scope}_KEY", environment) for scope in scopes)
    return next(filter(None, found), "")


class Service:
    """A running service.

    Args:
        url: its address, http:// or https://.
        key: bearer token; empty for none.
        seconds: longest wait for an answer.

    Raises:
        RemoteError: the address is none.
        streams.proxies.ProxyError: the proxy of the environment for it cannot be used.
    """

    def __init__(self, url: str, key: str = "", seconds: float = SECONDS) -> None:
        import httpx

        from streams.proxies import transport

        self._url = url
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            if httpx.URL(url).scheme not in ("http", "https") or not httpx.URL(url).host:
                raise RemoteError(f"--to: {url!r} is not an address: http://host:port")
            timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
            self._client = httpx.Client(
                base_url=url, headers=headers, timeout=timeout, transport=transport(url)
            )
        except httpx.InvalidURL as error:
            raise RemoteError(f"--to: {url!r} is not an address: {error}") from error

    def get(self, path: str, query: Mapping[str, str | int] | None = None) -> "httpx.Response":
        """Return the answer to a GET, whatever its status.

        Raises:
            RemoteError: there is none.
        """
        return self._send("GET", path, query)

    def post(
        self, path: str, content: bytes, kind: str, query: Mapping[str, str | int] | None = None
    ) -> "httpx.Response":
        """Return the answer to a POST with a body of a Content-Type, whatever its status.

        Raises:
            RemoteError: there is none.
        """
        return self._send("POST", path, query, content, {"Content-Type": kind})

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "httpx.Response":
        import httpx

        try:
            return self._client.request(
                method, path, params=query, content=content, headers=headers
            )
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise RemoteError(f"no service answers at {self._url}: {reason}") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def checked(answer: "httpx.Response") -> "httpx.Response":
    """Return an answer that is no error.

    Raises:
        RemoteError: it is one; the message is the service's.
    """
    if answer.is_success:
        return answer
    raise RemoteError(f"the service answered {answer.status_code}: {message_of(answer)}")


def message_of(answer: "httpx.Response") -> str:
    """Return the message of an error, or the beginning of an answer that is not the service's."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
