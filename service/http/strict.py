"""Refuses unknown queries, and queries and headers with two values."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from fastapi import Request
from fastapi.routing import APIRoute

from service.http.errors import HTTPError

SINGLE = ("Content-Type", "Content-Encoding", "Idempotency-Key")
"""Headers of which a request may have one value. `Guard` sees to Authorization."""


async def check_headers(request: Request) -> None:
    """Check the headers of a request.

    Raises:
        HTTPError: 422 a header has two values.
    """
    for name in SINGLE:
        if _differ(request.headers.getlist(name)):
            message = f"the header {name} came with different values; send it once"
            raise HTTPError(422, "invalid", message, name)


async def check(request: Request) -> None:
    """Check the headers and queries of a request.

    Raises:
        HTTPError: 422 a query is unknown, or a query or header has two values.
    """
    await check_headers(request)
    route, given = request.scope.get("route"), request.query_params
    if not given or not isinstance(route, APIRoute):
        return
    known = _queries(route)
    for name in given:
        if name not in known:
            raise HTTPError(422, "invalid", _unknown(name, known), name[:40])
        if _differ(given.getlist(name)):
            message = f"the query {name} came with different values; send it once"
            raise HTTPError(422, "invalid", message, name)


def _unknown(name: str, known: Sequence[str]) -> str:
    if not known:
        return f"unknown query {name[:40]!r}: this route has none"
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}? It" if close else "it"
    return f"unknown query {name[:40]!r}: {hint} may be {', '.join(known)}"


def _differ(values: Iterable[str]) -> bool:
    return len(set(values)) > 1


def _queries(route: APIRoute) -> list[str]:
    """Return the names of the queries of a route, which its function declares."""
    return [field.alias for field in route.dependant.query_params]
