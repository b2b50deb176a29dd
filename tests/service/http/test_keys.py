"""Each key allows what its scope says, and keys stay secret."""

import asyncio
import hmac
import socket
import traceback
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse

from service.cli import main
from service.http.guard import ADMIN, LEARN, PREDICT, Guard
from service.http.sites import Sites
from service.monitoring.metrics import Metrics, Reading
from service.settings import SettingsError, load_settings
from tests.support.harness import ServiceProcess, serving

SETTINGS = {"api_key": "hush-all", "learn_key": "hush-learn", "predict_key": "hush-predict"}
TOKENS = dict(zip((ADMIN, LEARN, PREDICT), SETTINGS.values(), strict=True))
SMALL = {"features": 2, "classes": 2, "batch_size": 1}
BODIES = {
    "/learn": {"features": [[0, 1]], "labels": [1]},
    "/predict": {"features": [[0, 1]]},
    "/labels": {"ids": ["a"], "labels": [1]},
    "/promote": {"learner": "original"},
    "/skip": {"entries": ["1-0"], "dry_run": True},
    "/rollback": {"version": 1, "dry_run": True},
}
READERS = {ADMIN, PREDICT}
# For each request, the status with a key that allows it; other keys get 403.
MATRIX = [
    ("POST", "/learn", 202, {ADMIN, LEARN}),
    ("POST", "/labels", 202, {ADMIN, LEARN}),
    ("POST", "/predict", 200, READERS),
    ("POST", "/checkpoint", 201, {ADMIN}),
    ("POST", "/pause", 202, {ADMIN}),
    ("POST", "/resume", 202, {ADMIN}),
    ("POST", "/promote", 202, {ADMIN}),
    ("POST", "/skip", 200, {ADMIN}),
    ("POST", "/rollback", 200, {ADMIN}),
    ("GET", "/model", 200, READERS),
    ("GET", "/model/export", 200, {ADMIN}),
    ("GET", "/optimizer", 200, READERS),
    ("GET", "/optimizer/gains", 200, READERS),
    ("GET", "/newest", 200, READERS),
    ("GET", "/drift", 200, READERS),
    ("GET", "/dead", 200, {ADMIN}),
    ("HEAD", "/dead", 200, {ADMIN}),
    ("GET", "/history", 200, READERS),
    ("GET", "/schema", 404, READERS),
    ("GET", "/features", 404, READERS),
    ("GET", "/", 200, READERS),
    ("GET", "/metrics", 200, READERS),
    ("HEAD", "/metrics", 200, READERS),
    ("HEAD", "/events", 405, READERS),
    ("GET", "/docs", 200, READERS),
    ("HEAD", "/docs", 200, READERS),
    ("GET", "/docs/oauth2-redirect", 200, READERS),
    ("GET", "/redoc", 200, READERS),
    ("GET", "/openapi.json", 200, READERS),
    ("GET", "/learn", 405, READERS),
    ("GET", "/nothing", 404, {ADMIN, LEARN, PREDICT}),
    ("POST", "/nothing", 404, {ADMIN}),
    ("POST", "/learn/", 404, {ADMIN}),
    ("POST", "/model", 405, {ADMIN}),
    ("DELETE", "/model", 405, {ADMIN}),
    ("OPTIONS", "/learn", 405, {ADMIN}),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with serving(tmp_path_factory.mktemp("keys"), **SMALL, **SETTINGS) as running:
        yield running


def send(
    service: ServiceProcess, method: str, path: str, token: str | None = None
) -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with service.client(**headers) as client:
        return client.request(method, path, json=BODIES.get(path))


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed", "scope"),
    [(*request, scope) for request, scope in product(MATRIX, TOKENS)],
)
def test_a_key_allows_what_its_scope_says(
    service: ServiceProcess, method: str, path: str, status: int, allowed: set[str], scope: str
) -> None:
    answer = send(service, method, path, TOKENS[scope])
    assert answer.status_code == (status if scope in allowed else 403)


@pytest.mark.parametrize("token", [None, "wrong", "hush", "hush-all2", "HUSH-ALL"])
def test_without_a_valid_key_no_request_is_answered(
    service: ServiceProcess, token: str | None
) -> None:
    for method, path, _, _ in MATRIX:
        answer = send(service, method, path, token)
        assert answer.status_code == 401, path
        assert answer.headers["WWW-Authenticate"].split(",")[0] == "Bearer"


def test_the_matrix_has_every_route_except_open_ones(service: ServiceProcess) -> None:
    open_paths = {"/health/live", "/health/ready"}
    for token, status in ((None, 401), (TOKENS[LEARN], 403)):  # to others it answers without end
        assert send(service, "GET", "/events", token).status_code == status
    for path in open_paths:
        for token in (None, "wrong", *TOKENS.values()):
            assert send(service, "GET", path, token).status_code == 200
    documented = send(service, "GET", "/openapi.json", TOKENS[PREDICT]).json()["paths"]
    routes = {(method.upper(), path) for path, of in documented.items() for method in of}
    tested = {(method, path) for method, path, _, _ in MATRIX}
    assert {(method, path) for method, path in routes - tested} == {
        ("GET", path) for path in {*open_paths, "/events"}
    }
    for method, path in routes & tested:
        assert {"401", "403"} <= documented[path][method.lower()]["responses"].keys()


@pytest.mark.parametrize(
    ("method", "path", "scope", "needed"),
    [
        ("POST", "/learn", PREDICT, LEARN),
        ("POST", "/predict", LEARN, PREDICT),
        ("GET", "/model", LEARN, PREDICT),
        ("POST", "/checkpoint", LEARN, ADMIN),
        ("POST", "/checkpoint", PREDICT, ADMIN),
    ],
)
def test_a_refusal_names_the_scope_that_is_needed(
    service: ServiceProcess, method: str, path: str, scope: str, needed: str
) -> None:
    answer = send(service, method, path, TOKENS[scope])
    assert answer.status_code == 403
    assert answer.json()["error"] == {
        "code": "forbidden", "message": f"this request needs a key of scope {needed}",
    }  # fmt: skip
    assert "WWW-Authenticate" not in answer.headers


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/learn", "wrong", 401),
        ("/learn", TOKENS[PREDICT], 403),
        ("/predict", TOKENS[LEARN], 403),
        ("/checkpoint", TOKENS[LEARN], 403),
    ],
)
def test_a_refusal_does_not_wait_for_the_body(
    service: ServiceProcess, path: str, token: str, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as raw:
        raw.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {token}\r\nContent-Length: 1000000\r\n\r\n".encode()
        )
        raw.settimeout(5)
        assert raw.recv(200).startswith(f"HTTP/1.1 {status} ".encode())


def test_refusals_are_counted(service: ServiceProcess) -> None:
    def count(code: str) -> float:
        text = send(service, "GET", "/metrics", TOKENS[PREDICT]).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "funnel_rejected_total" and sample.labels == {"code": code}
        )

    before = count("unauthorized"), count("forbidden")
    send(service, "POST", "/learn")
    send(service, "POST", "/learn", TOKENS[PREDICT])
    send(service, "POST", "/checkpoint", TOKENS[PREDICT])
    assert (count("unauthorized"), count("forbidden")) == (before[0] + 1, before[1] + 2)


@pytest.mark.parametrize("token", ["wrong", *TOKENS.values()])
def test_the_given_key_is_compared_with_every_key(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def recorded(given: bytes, key: bytes) -> bool:
        compared.append(key)
        return compare(given, key)

    settings = load_settings(SETTINGS)
    keys = {ADMIN: settings.api_key, LEARN: settings.learn_key, PREDICT: settings.predict_key}
    guard = Guard(
        PlainTextResponse("answer"),
        keys,
        routes=(),
        metrics=Metrics(lambda: Reading("", True, None, 0)),
        sites=Sites("127.0.0.1", (), has_keys=True),
    )

    async def ask() -> None:
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            await client.post("/learn", headers={"Authorization": f"Bearer {token}"})

    monkeypatch.setattr(hmac, "compare_digest", recorded)
    asyncio.run(ask())
    assert compared == [key.encode() for key in TOKENS.values()]


REFUSED = [
    ({"learn_key": "hush"}, "FUNNEL_LEARN_KEY: set FUNNEL_API_KEY too"),
    ({"predict_key": "hush"}, "FUNNEL_PREDICT_KEY: set FUNNEL_API_KEY too"),
    ({"learn_key": "hush", "predict_key": "hush2"}, "FUNNEL_LEARN_KEY: set FUNNEL_API_KEY too"),
    (
        {"api_key": "hush", "learn_key": "hush"},
        "FUNNEL_LEARN_KEY: choose a key other than .*API_KEY",
    ),
    (
        {"api_key": "hush", "predict_key": "hush"},
        "FUNNEL_PREDICT_KEY: choose a key other than .*API_KEY",
    ),
    (
        {"api_key": "hush1", "learn_key": "hush2", "predict_key": "hush2"},
        "FUNNEL_PREDICT_KEY: choose a key other than .*LEARN_KEY",
    ),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_keys_that_protect_nothing_are_refused(
    keys: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, key in keys.items():
        monkeypatch.setenv(f"FUNNEL_{name.upper()}", key)
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings()
    assert "\n" not in str(caught.value)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_a_service_with_refused_keys_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--learn-key", "hush"]) == 2
    assert capsys.readouterr().err == (
        "funnel: --learn-key: set FUNNEL_API_KEY too, the key that may do everything\n"
    )


def test_a_key_on_the_command_line_warns_without_showing_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--api-key", "hush", "--model", "no.such:model"]) == 1
    warning, *_ = capsys.readouterr().err.splitlines()
    assert warning.startswith("funnel: --api-key: ps shows the key to every user")
    assert "FUNNEL_API_KEY_FILE" in warning
    assert "hush" not in warning


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("ops:hush1,hush2", "FUNNEL_API_KEY: give each of several keys a name"),
        ("ops:hush1,ops:hush2", "FUNNEL_API_KEY: a name or a key comes twice"),
        ("ops:hush1,ann:hush1", "FUNNEL_API_KEY: a name or a key comes twice"),
    ],
)
def test_keys_whose_names_are_not_clear_are_refused(key: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings({"api_key": key})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("keys", [{}, {"learn_key": "", "predict_key": ""}])
def test_empty_keys_do_not_count(keys: dict[str, str]) -> None:
    settings = load_settings(keys)
    assert not any((settings.api_key, settings.learn_key, settings.predict_key))


def test_no_answer_and_no_log_shows_a_key(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL, **SETTINGS) as service:
        answers = [
            send(service, method, path, token)
            for method, path, _, _ in MATRIX
            for token in (None, *TOKENS.values())
        ]
        assert service.terminate() == 0
        assert "serving" in service.log
        shown = [service.log, *(f"{answer.headers}{answer.text}" for answer in answers)]
        assert [text for text in shown if "hush" in text] == []
