"""``GET /``: the live page. It loads nothing from other hosts and runs only its own scripts."""

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Response

from service.http.errors import HTTPError

router = APIRouter(include_in_schema=False)

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def _parts(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _parts(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in TYPES:
            yield prefix + entry.name, entry.read_bytes()


FILES = dict(_parts(files("service.http") / "page"))
"""The page's files by their paths."""


@router.get("/")
async def page() -> Response:
    """Return the page."""
    return await part("index.html")


@router.get("/page/{name:path}")
async def part(name: str) -> Response:
    """Return one of the page's files."""
    if name not in FILES:
        raise HTTPError(404, "not_found", "the page has no such file")
    kind = TYPES[name.rpartition(".")[2]]
    return Response(FILES[name], media_type=kind, headers=HEADERS)
