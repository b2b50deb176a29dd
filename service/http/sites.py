"""Which sites' pages may use the service: its own only.

A browser lets any page send requests to any address, also to a service on this machine that needs
no key. It says in each request which page has sent it (https://www.w3.org/TR/fetch-metadata/), and
by which name it reached the service.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import Scope

from service.http.errors import HTTPError

READS = ("GET", "HEAD")


class Sites:
    """Refuses requests of other sites' pages.

    Args:
        host: the address that the service listens on.
        allowed: names by which it is reached, besides those of the loopback interface.
        has_keys: whether requests need a key, which a foreign page does not have.
    """

    def __init__(self, host: str, allowed: Sequence[str], has_keys: bool) -> None:
        self._allowed = {name.lower() for name in allowed}
        self._checks_host = bool(allowed) or (_is_loopback(host) and not has_keys)

    def refusal(self, scope: Scope) -> HTTPError | None:
        """Return the answer to a request that may not come from where it does."""
        given: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name, []).append(value.decode("latin-1").strip().lower())
        hosts = given.get(b"host", [])
        # A page of evil.example may let its own name lead to 127.0.0.1: it is same-origin then.
        if self._checks_host and not all(map(self._is_known, hosts)):
            return HTTPError(
                403,
                "unknown_host",
                f"the service does not go by the name of the header Host, {hosts[0][:80]!r}; "
                "FUNNEL_ALLOWED_HOSTS lists further names",
            )
        is_link = scope["method"] in READS and given.get(b"sec-fetch-mode") == ["navigate"]
        site, origins = given.get(b"sec-fetch-site"), given.get(b"origin", [])
        if site == ["same-origin"]:
            return None
        if site in (None, ["none"]):
            own = all(self._is_own(origin, hosts) for origin in origins)
            return None if own else _cross_site(origins[0])
        return None if is_link else _cross_site(origins[0] if origins else "another site")

    def refusal_of_order(self, scope: Scope) -> HTTPError | None:
        """Return the answer to an operator's command without a key that does not come from this
        machine, by one of its own names."""
        client = scope.get("client")
        hosts = [v.decode("latin-1").lower() for name, v in scope["headers"] if name == b"host"]
        if client and _is_loopback(client[0]) and all(map(self._is_known, hosts)):
            return None
        return HTTPError(
            403,
            "forbidden",
            "without keys, this is for clients on the same machine; set FUNNEL_API_KEY for others",
        )

    def _is_known(self, host: str) -> bool:
        name = _name_of(f"//{host}")
        return _is_loopback(name) or name in self._allowed

    def _is_own(self, origin: str, hosts: Sequence[str]) -> bool:
        return origin.partition("//")[2] in hosts or _name_of(origin) in self._allowed


def _cross_site(origin: str) -> HTTPError:
    return HTTPError(
        403,
        "cross_site",
        f"a browser sent this for a page of {origin[:80]}; only the service's own page may do so",
    )


def _name_of(url: str) -> str:
    """Return the name of the host in a URL, or an empty one."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
