"""Pages of other sites, and names that lead here, cannot use a service through a browser."""

import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from service.http.sites import Sites
from tests.support.harness import ServiceProcess, serving

SMALL = {"features": 2, "classes": 2, "batch_size": 1_000, "max_wait_ms": 600_000}
EXAMPLE = {"features": [[0, 1]], "labels": [1]}
REQUESTS = (
    ("POST", "/learn"), ("POST", "/predict"), ("POST", "/checkpoint"), ("GET", "/newest"),
    ("GET", "/model"), ("GET", "/metrics"), ("GET", "/history"), ("GET", "/"),
)  # fmt: skip
FOREIGN: tuple[dict[str, str], ...] = (
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
)
HOSTS = ("evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "[::2]:1", "[")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with serving(tmp_path_factory.mktemp("sites"), **SMALL) as running:
        yield running


def ask(
    service: ServiceProcess, method: str, path: str, headers: Mapping[str, str]
) -> httpx.Response:
    with service.client(**headers) as client:
        body = EXAMPLE if path == "/learn" else {"features": EXAMPLE["features"]}
        return client.request(method, path, json=body if method == "POST" else None)


@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_a_page_of_another_site_neither_teaches_nor_reads(
    service: ServiceProcess, method: str, path: str
) -> None:
    for headers in FOREIGN:
        answer = ask(service, method, path, headers)
        assert (answer.status_code, code(answer)) == (403, "cross_site"), headers
    for host in HOSTS:
        answer = ask(service, method, path, {"Host": host})
        assert (answer.status_code, code(answer)) == (403, "unknown_host"), host
        assert "FUNNEL_ALLOWED_HOSTS" in answer.text


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "127.0.0.2", "[::1]"])
def test_the_page_works_under_every_name_of_this_machine(
    service: ServiceProcess, name: str
) -> None:
    host = f"{name}:{service.port}"
    own: tuple[dict[str, str], ...] = (
        {},
        {"Origin": f"http://{host}"},
        {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    )
    for headers in own:
        for method, path in REQUESTS:
            answer = ask(service, method, path, {"Host": host} | headers)
            assert answer.status_code in (200, 201, 202), (path, headers, answer.text)


def test_a_link_from_another_site_opens_the_page(service: ServiceProcess) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(service, "GET", "/", link).status_code == 200
    assert ask(service, "POST", "/checkpoint", link).status_code == 403  # a form


def test_health_answers_whatever_the_name(service: ServiceProcess) -> None:
    for path in ("/health/live", "/health/ready"):
        headers = {"Host": "pod-7.funnel", "Origin": "http://evil.example"}
        assert ask(service, "GET", path, headers).status_code == 200


def test_a_second_host_header_does_not_help(service: ServiceProcess) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as raw:
        raw.sendall(b"GET /model HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n")
        assert b"403" in raw.recv(100)


def test_a_path_with_a_slash_too_many_is_not_there(service: ServiceProcess) -> None:
    for method, path in (("POST", "/learn/"), ("GET", "/model/")):
        answer = ask(service, method, path, {})
        assert (answer.status_code, code(answer)) == (404, "not_found")
        assert "Location" not in answer.headers


def test_a_name_that_the_settings_allow_is_accepted_and_others_are_not(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL, allowed_hosts="funnel.example, other") as service:
        for host, status in (
            ("funnel.example:443", 200), ("Other", 200), ("localhost", 200), ("evil.example", 403),
        ):  # fmt: skip
            assert ask(service, "GET", "/model", {"Host": host}).status_code == status, host
        for origin, status in (("https://funnel.example", 202), ("https://evil.example", 403)):
            headers = {"Host": "funnel.example", "Origin": origin}
            assert ask(service, "POST", "/learn", headers).status_code == status


@pytest.mark.parametrize(
    ("host", "allowed", "has_keys", "accepts"),
    [
        ("127.0.0.1", (), False, False),
        ("localhost", (), False, False),
        ("::1", (), False, False),
        ("127.0.0.1", (), True, True),
        ("0.0.0.0", (), False, True),
        ("::", (), False, True),
        ("funnel.lan", (), False, True),
        ("0.0.0.0", ("funnel.example",), False, False),
    ],
)
def test_a_service_checks_names_where_a_page_could_reach_it_by_its_own(
    host: str, allowed: tuple[str, ...], has_keys: bool, accepts: bool
) -> None:
    scope = {"method": "GET", "path": "/model", "headers": [(b"host", b"pod-7:8000")]}
    assert (Sites(host, allowed, has_keys).refusal(scope) is None) == accepts


def test_every_file_of_the_page_is_loaded_from_its_own_site(service: ServiceProcess) -> None:
    page = ask(service, "GET", "/", {}).text
    names = re.findall(r'(?:src|href)="(/?page/[^"]+)"', page)
    assert names
    for name in names:
        headers = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors"}
        assert ask(service, "GET", f"/{name.lstrip('/')}", headers).status_code == 200
