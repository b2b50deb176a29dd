"""The API's document names every route, with its statuses and fields, and every error code."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.documents import ROOT, section
from tests.support.harness import serving

API = ROOT / "service/docs/api.md"
SOURCES = [path.read_text() for path in sorted((ROOT / "service").rglob("*.py"))]
OF_ERRORS = ("ErrorBody", "ErrorDetail", "HTTPValidationError", "ValidationError")


@pytest.fixture(scope="module")
def openapi() -> Iterator[dict[str, Any]]:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,  # short enough for a socket
        serving(Path(directory), model=None, features=3, classes=2) as service,
        service.client() as client,
    ):
        yield client.get("/openapi.json").json()


def operations(openapi: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", section(API, f"{method.upper()} {path}"), operation


def test_every_route_has_a_section_with_its_statuses_and_parameters(
    openapi: dict[str, Any],
) -> None:
    missing = []
    for route, text, operation in operations(openapi):
        named = [*operation["responses"], *(p["name"] for p in operation.get("parameters", ()))]
        missing += [f"{route}: {name}" for name in named if name.lower() not in text.lower()]
    assert missing == []


def test_every_section_of_a_route_is_one_of_the_service(openapi: dict[str, Any]) -> None:
    headings = re.findall(r"^## ((?:GET|POST) .*)$", API.read_text(), re.MULTILINE)
    assert headings
    assert set(headings) == {route for route, *_ in operations(openapi)}


def test_every_field_of_an_answer_is_in_the_section_of_its_route(openapi: dict[str, Any]) -> None:
    schemas = openapi["components"]["schemas"]
    missing = []
    for route, text, operation in operations(openapi):
        for field in fields(operation["responses"], schemas):
            if not re.search(rf'[`"]{field}["`]', text):
                missing.append(f"{route}: {field}")
    assert missing == []


def fields(schema: object, schemas: dict[str, Any]) -> Iterator[str]:
    """Yield the names of all properties that a schema leads to, those of errors excepted."""
    if isinstance(schema, list):
        for part in schema:
            yield from fields(part, schemas)
    elif isinstance(schema, dict):
        yield from schema.get("properties", {})
        for key, part in schema.items():
            if key == "$ref" and (name := part.rpartition("/")[2]) not in OF_ERRORS:
                yield from fields(schemas[name], schemas)
            yield from fields(part, schemas)


def test_every_route_in_the_sources_is_in_the_document() -> None:
    """Also the page's and the demo's, which OpenAPI does not have."""
    routes = {
        f"{method.upper()} {path}"
        for source in SOURCES
        for method, path in re.findall(r'@router\.(get|post)\(\s*"([^"]+)"', source)
    }
    assert {"POST /learn", "GET /", "POST /demo/shift"} <= routes
    text = API.read_text()
    assert {route for route in routes if not re.search(rf"{re.escape(route)}[`\n]", text)} == set()


def test_every_error_code_is_in_the_document() -> None:
    patterns = (
        r'HTTPError\(\s*\d{3},\s*"([a-z_]+)"',
        r'unavailable\(\s*"([a-z_]+)"',
        r'_refuse\(\s*\d{3},\s*"([a-z_]+)"',
        r'\bcode="([a-z_]+)"',
        r'count\("([a-z_]+)"\)',
    )
    codes = {
        code for source in SOURCES for pattern in patterns for code in re.findall(pattern, source)
    }
    assert len(codes) >= 20
    table = section(API, "Errors")
    assert {code for code in codes if f"`{code}`" not in table} == set()
