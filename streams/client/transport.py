"""One try of a request over HTTP: what is sent, and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from streams.proxies import async_transport, proxy_for, transport

CONNECT_SECONDS = 5.0
BUSY = (408, 409, 429, 502, 503, 504)
"""Statuses after which the same request may be accepted later."""
NO_ANSWER = 0
"""Status of a try that got no answer."""


@dataclass(frozen=True)
class Request:
    """A request to a service."""

    method: str
    path: str
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The result of one try."""

    status: int
    """HTTP status, or NO_ANSWER."""
    content: bytes = b""
    after: float | None = None
    """Seconds that the service asked to wait, or None."""
    fault: str = ""
    """Error of the connection, if there is no answer."""
    is_absent: bool = False
    """True if nobody answers there, which is no sign of a busy service."""

    @property
    def is_busy(self) -> bool:
        """True if the same request may be accepted later."""
        return self.status == NO_ANSWER or self.status in BUSY

    @property
    def is_fine(self) -> bool:
        """True if the service did what the request asked for."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content.decode(errors="replace")


class Transport:
    """Connections to one service.

    Args:
        url: of the service, http:// or https://.

    Raises:
        ProxyError: the proxy of the environment for the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, transport=transport(url))

    def send(self, request: Request, seconds: float) -> Answer:
        """Send a request once, and wait for an answer that comes within ``seconds``."""
        try:
            return _answer(self._client.send(_built(self._client, request, seconds)))
        except httpx.TransportError as error:
            return _no_answer(error)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncTransport:
    """Connections to one service, for asyncio; otherwise as `Transport`."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, transport=async_transport(url))

    async def send(self, request: Request, seconds: float) -> Answer:
        """Send a request once, and wait for an answer that comes within ``seconds``."""
        try:
            return _answer(await self._client.send(_built(self._client, request, seconds)))
        except httpx.TransportError as error:
            return _no_answer(error)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def shown(url: str) -> str:
    """Return a URL for messages, without its user, password and query.

    >>> shown("https://name:secret@example.org/a?token=secret")
    'https://example.org/a'
    """
    scheme, _, address = url.partition("?")[0].partition("://")
    return f"{scheme}://{address.rpartition('@')[2]}"


def way_to(url: str) -> str:
    """Return a URL for messages, with the proxy of the environment that leads to it, if any."""
    if proxy := proxy_for(url):
        return f"{shown(url)} through the proxy {shown(proxy)} of the environment"
    return shown(url)


def _built(
    client: httpx.Client | httpx.AsyncClient, request: Request, seconds: float
) -> httpx.Request:
    return client.build_request(
        request.method,
        request.path,
        content=request.content,
        params=request.query,
        headers=request.headers,
        timeout=httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
    )


def _answer(response: httpx.Response) -> Answer:
    after = response.headers.get("Retry-After", "")
    seconds = float(after) if after.isdigit() else None
    return Answer(response.status_code, response.content, seconds)


def _no_answer(error: httpx.TransportError) -> Answer:
    is_absent = isinstance(error, httpx.ConnectError | httpx.TimeoutException)
    return Answer(NO_ANSWER, fault=str(error) or type(error).__name__, is_absent=is_absent)
