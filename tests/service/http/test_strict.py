"""A request that contradicts itself, or asks for what no route knows, is refused by name."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.harness import serving

ONE = {"features": [[0.0] * 6], "labels": [0]}
INPUTS = {"features": [[0.0] * 6]}
KEY = "a-key-of-at-least-16"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    options = {"features": 6, "classes": 3, "max_wait_ms": 20, "api_key": KEY}
    directory = tmp_path_factory.mktemp("strict")
    with (
        serving(directory, **options) as service,
        service.client(Authorization=f"Bearer {KEY}") as client,
    ):
        yield client


def refusal(answer: httpx.Response) -> tuple[int, str, str | None, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error.get("field"), error["message"]


@pytest.mark.parametrize(
    ("method", "url", "body", "field", "hint"),
    [
        ("POST", "/learn?wiat=applied", ONE, "wiat", "did you mean 'wait'?"),
        ("POST", "/learn?labels=y", ONE, "labels", "did you mean 'label'?"),
        ("POST", "/predict?probabilites=false", INPUTS, "probabilites", "'probabilities'?"),
        ("POST", "/predict?xyz=1", INPUTS, "xyz", "it may be probabilities, names, explain"),
        ("GET", "/history?sinse=3", None, "sinse", "did you mean 'since'?"),
        ("GET", "/drift?limit=3", None, "limit", "it may be since"),
        ("GET", "/features?tap=3", None, "tap", "did you mean 'top'?"),
        ("GET", "/dead?coutn=3", None, "coutn", "did you mean 'count'?"),
        ("GET", "/model?since=3", None, "since", "this route has none"),
        ("GET", "/optimizer?x=1", None, "x", "this route has none"),
        ("POST", "/checkpoint?wait=1", None, "wait", "this route has none"),
    ],
)
def test_an_unknown_query_is_refused_with_the_closest_one(
    client: httpx.Client, method: str, url: str, body: object, field: str, hint: str
) -> None:
    status, code, named, message = refusal(client.request(method, url, json=body))
    assert (status, code, named) == (422, "invalid", field)
    assert hint in message


@pytest.mark.parametrize(
    "url", ["/", "/page/page.js", "/metrics", "/health/ready", "/openapi.json"]
)
def test_pages_probes_and_scrapes_ignore_queries(client: httpx.Client, url: str) -> None:
    assert client.get(f"{url}?v=123").status_code == 200


def test_a_query_with_two_values_is_refused(client: httpx.Client) -> None:
    answer = client.post("/predict?probabilities=false&probabilities=true", json=INPUTS)
    assert refusal(answer)[:3] == (422, "invalid", "probabilities")
    same = client.post("/predict?probabilities=false&probabilities=false", json=INPUTS)
    assert same.status_code == 200


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Idempotency-Key", ("a", "b")),
        ("Content-Type", ("application/json", "application/octet-stream")),
        ("Content-Encoding", ("identity", "gzip")),
    ],
)
def test_a_header_with_two_values_is_refused_by_name(
    client: httpx.Client, name: str, values: tuple[str, ...]
) -> None:
    body = httpx.Request("POST", "http://any", json=ONE).content
    headers = {} if name == "Content-Type" else {"Content-Type": "application/json"}
    given = [*headers.items(), *((name, value) for value in values)]
    answer = client.post("/learn", content=body, headers=given)
    assert refusal(answer)[:3] == (422, "invalid", name)
    assert name in refusal(answer)[3]
    again = [*headers.items(), *((name, values[0]) for _ in values)]
    assert client.post("/learn", content=body, headers=again).status_code == 202


def test_two_different_keys_are_refused_even_if_one_is_right(client: httpx.Client) -> None:
    right = f"Bearer {KEY}"
    for values in ((right, "Bearer wrong"), ("Bearer wrong", right)):
        answer = httpx.get(
            client.base_url.join("/model"), headers=[("Authorization", value) for value in values]
        )
        assert refusal(answer)[:2] == (401, "unauthorized")
        assert "different values" in refusal(answer)[3]
