"""Proxies of the environment are used where they are meant, and never for this machine."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from streams.batch import Batch
from streams.producer import HTTPTarget, RetryLaterError
from streams.proxies import ProxyError, proxy_for, transport

PROXY = "http://proxy.example:3128"
BATCH = Batch(np.zeros((1, 2), dtype=np.float32), np.zeros(1, dtype=np.int64))


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "app.localhost", "127.0.0.1", "127.9.9.9", "[::1]", "0.0.0.0",
     "[::]"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_this_machine_is_never_asked_of_a_proxy(
    host: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    assert proxy_for(f"http://{host}:8000/x") is None
    HTTPTarget(f"http://{host}:8000").close()


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "http://a.example", None),
        ({"HTTP_PROXY": PROXY}, "http://a.example", PROXY),
        ({"HTTP_PROXY": "proxy.example:3128"}, "http://a.example", PROXY),
        ({"HTTP_PROXY": PROXY}, "https://a.example", None),
        ({"https_proxy": PROXY}, "https://a.example", PROXY),
        ({"ALL_PROXY": PROXY}, "http://a.example", PROXY),
        ({"ALL_PROXY": "http://x", "HTTP_PROXY": PROXY}, "http://a.example", PROXY),
    ],
)
def test_the_proxy_of_the_scheme_is_taken(
    variables: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize(
    ("exempt", "url", "is_exempt"),
    [
        ("a.example", "http://a.example", True),
        ("example", "http://a.example", True),
        (".example", "http://a.example", True),
        ("*.example", "http://a.example", True),
        ("ample", "http://a.example", False),
        ("b.example, A.Example", "http://a.example", True),
        ("a.example:8000", "http://a.example:8000", True),
        ("a.example:8000", "http://a.example", False),
        ("a.example:443", "https://a.example", True),
        ("*", "http://a.example", True),
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("10.0.0.0/8", "http://a.example", False),
        ("10.1.2.3", "http://10.1.2.3:80", True),
        ("fd00::/8,::1/128", "http://[fd00::5]:1", True),
        ("localhost,127.0.0.0/8,::1/128", "http://a.example", False),
        (",, ", "http://a.example", False),
    ],
)
def test_no_proxy_names_hosts_domains_ports_and_networks(
    exempt: str, url: str, is_exempt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", exempt)
    monkeypatch.setenv("ALL_PROXY", PROXY)
    assert proxy_for(url) == (None if is_exempt else PROXY)
    transport(url).close()


@pytest.mark.parametrize("proxy", ["socks5://user:hush@h:1", "ftp://h:1", "http://h:port"])
def test_a_proxy_that_cannot_be_used_is_one_line_without_its_password(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ProxyError, match=r"h:.*NO_PROXY") as refused:
        transport("http://a.example")
    assert "hush" not in str(refused.value)
    assert "\n" not in str(refused.value)


class Proxy(BaseHTTPRequestHandler):
    """A proxy that keeps the targets that it was asked for, and refuses them."""

    asked: list[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        self.send_response(502)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def proxy() -> Iterator[HTTPServer]:
    Proxy.asked = []
    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_batch_for_another_machine_goes_through_the_proxy(
    proxy: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
    target = HTTPTarget("http://funnel.invalid:8000")
    with pytest.raises(RetryLaterError):
        target.send(BATCH, "key")
    target.close()
    assert Proxy.asked == ["http://funnel.invalid:8000/learn"]
