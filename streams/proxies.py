"""Which proxy of the environment a request goes through, if any.

httpx fails on a ``NO_PROXY`` with networks, and asks a proxy for addresses of this machine.
"""

import ipaddress
import urllib.request
from urllib.parse import SplitResult, urlsplit

import httpx

from streams.errors import FunnelError

DEFAULT_PORTS = {"http": 80, "https": 443}


class ProxyError(FunnelError, RuntimeError):
    """A proxy of the environment cannot be used; the message names it."""


def proxy_for(url: str) -> str | None:
    """Return the proxy for an address; None for one of this machine, and if there is no proxy.

    The variables are those that curl reads: ``http_proxy``, ``https_proxy``, ``all_proxy`` and
    ``no_proxy``, in small or capital letters. ``no_proxy`` holds hosts, domains and networks, each
    with a port or without, or ``*``.

    Args:
        url: http:// or https://.
    """
    parts = urlsplit(url)
    found = urllib.request.getproxies_environment()
    proxy = found.get(parts.scheme) or found.get("all")
    if not proxy or is_local(parts.hostname or "") or _is_exempt(parts, found.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_local(host: str) -> bool:
    """Return whether a host is this machine: loopback, or the address of every interface."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and (address.is_loopback or address.is_unspecified)


def transport(url: str) -> httpx.HTTPTransport:
    """Return the transport of a client for an address.

    Raises:
        ProxyError: the proxy for it cannot be used.
    """
    proxy = proxy_for(url)
    try:
        return httpx.HTTPTransport(proxy=proxy)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise _unusable(proxy, error) from error


def async_transport(url: str) -> httpx.AsyncHTTPTransport:
    """Return the transport of an asynchronous client for an address.

    Raises:
        ProxyError: the proxy for it cannot be used.
    """
    proxy = proxy_for(url)
    try:
        return httpx.AsyncHTTPTransport(proxy=proxy)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise _unusable(proxy, error) from error


def _unusable(proxy: str | None, error: Exception) -> ProxyError:
    shown = (proxy or "").rpartition("@")[2]  # without a password
    return ProxyError(
        f"the proxy {shown} of the environment cannot be used: {error}. "
        "Add the host to NO_PROXY, or change HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
    )


def _is_exempt(parts: SplitResult, exempt: str) -> bool:
    """Return whether ``no_proxy`` names the host of an address."""
    host = (parts.hostname or "").rstrip(".").lower()
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    address = _address(host)
    for entry in exempt.lower().replace(",", " ").split():
        if entry == "*":
            return True
        if (network := _network(entry)) is not None:
            if address is not None and address in network:
                return True
            continue
        name, _, wanted = entry.partition(":")
        name = name.removeprefix("*").strip(".")
        if name and (host == name or host.endswith(f".{name}")) and wanted in ("", str(port)):
            return True
    return False


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
