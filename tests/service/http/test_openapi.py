"""Answers keep the promises of the OpenAPI document, for requests generated from it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from service.http.app import create_app
from service.http.codecs import ndjson, safetensors
from service.service import Service
from service.settings import load_settings
from tests.service.fuzz import SEEDS
from tests.support.harness import ServiceProcess, serving, wait_for

SMALL = {"features": 6, "classes": 3, "batch_size": 5, "max_wait_ms": 10, "archive": "off"}
"""Without an archive no rebuild takes examples back."""
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_headers_conformance, response_schema_conformance, negative_data_rejection,
    unsupported_method,
]  # fmt: skip

for kind in (ndjson.EXAMPLES.media_type, safetensors.MEDIA_TYPE):
    good = [body for _, other, body in SEEDS if other == kind]
    schemathesis.openapi.media_type(kind, st.sampled_from(good) | st.binary())

document = create_app(Service(load_settings(SMALL))).openapi()
api = schemathesis.openapi.from_dict(document)
answers = api.exclude(path="/events")
"""Routes whose answers end; `test_events` has the other."""


@dataclass
class World:
    """A service, and the numbers of examples in the entries that it has accepted."""

    service: ServiceProcess
    entries: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield a world in which, at the end, exactly the accepted examples are learned."""
    with serving(tmp_path_factory.mktemp("service"), **SMALL) as service:
        world = World(service)
        yield world
        with service.client() as client:
            accepted = sum(world.entries.values())
            wait_for(lambda: client.get("/model").json()["examples_learned"] >= accepted)
            assert client.get("/model").json()["examples_learned"] == accepted
            assert client.get("/health/ready").json()["learning"] == "learning"


def without_examples(found: Any) -> Any:
    """Return a document of which examples are no part: those that are served fit the model."""
    if isinstance(found, list):
        return [without_examples(each) for each in found]
    if not isinstance(found, dict):
        return found
    return {k: without_examples(v) for k, v in found.items() if k not in ("example", "examples")}


def test_the_document_is_the_one_that_is_served(world: World) -> None:
    with world.service.client() as client:
        served = client.get("/openapi.json").json()
    assert without_examples(served) == without_examples(document)
    examples = served["paths"]["/learn"]["post"]["requestBody"]["content"]["application/json"]
    assert len(examples["example"]["features"][0]) == SMALL["features"]


@pytest.mark.slow
@answers.parametrize()
@settings(max_examples=200, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_route_keeps_its_promises(case: schemathesis.Case, world: World) -> None:
    answer = case.call_and_validate(base_url=world.service.url, checks=CHECKS)
    if answer.status_code >= 400 and case.method != "HEAD":
        assert answer.json()["error"]["code"]
    elif case.path == "/learn":
        world.entries[answer.json()["entry"]] = answer.json()["accepted"]


def test_routes_are_listed_by_what_they_do_and_the_licence_is_named() -> None:
    shown = {
        (method, path): operation["summary"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert shown["post", "/learn"] == "Append labelled examples to the log"
    assert shown["get", "/drift"].startswith("List the drift events after since")
    assert not [text for text in shown.values() if text.endswith(".") or ";" in text]
    assert document["info"]["license"]["identifier"] == "MIT"
