"""Objects in memory, in a folder and in S3 keep the same promises."""

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.trainer.objects import bucket as buckets
from service.trainer.objects.bucket import AddressError, Bucket, ChangedError, open_bucket
from tests.support.harness import wait_for
from tests.support.objects import KEYS, S3Process, in_memory


@pytest.fixture(params=["memory", "folder", "s3"])
def bucket(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bucket:
    if request.param == "memory":
        return in_memory()
    if request.param == "folder":
        return open_bucket(f"file://{tmp_path}/state")
    server: S3Process = request.getfixturevalue("s3")
    return server.bucket(monkeypatch, f"s3://bucket/{tmp_path.name}/{time.monotonic_ns()}")


def test_an_object_is_created_once(bucket: Bucket) -> None:
    bucket.create("m/a", b"one")
    with pytest.raises(FileExistsError):
        bucket.create("m/a", b"two")
    found = bucket.read("m/a")
    assert found is not None
    assert found.raw == b"one"


def test_an_object_is_replaced_by_who_knows_its_version(bucket: Bucket) -> None:
    first = bucket.create("m/a", b"one")
    second = bucket.replace("m/a", b"two", first)
    with pytest.raises(ChangedError):
        bucket.replace("m/a", b"three", first)
    found = bucket.read("m/a")
    assert found is not None
    assert (found.raw, found.tag) == (b"two", second)


def test_of_two_that_replace_at_once_one_does(bucket: Bucket) -> None:
    known = bucket.create("m/a", b"0")

    def replace(k: int) -> bool:
        try:
            bucket.replace("m/a", b"%d" % k, known)
        except ChangedError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(replace, range(1, 9))) == 1


def test_what_is_known_is_not_read_again(bucket: Bucket) -> None:
    tag = bucket.create("m/a", b"one")
    assert bucket.read("m/a", tag) is None
    bucket.replace("m/a", b"two", tag)
    found = bucket.read("m/a", tag)
    assert found is not None
    assert found.raw == b"two"


def test_names_are_those_of_a_folder(bucket: Bucket) -> None:
    for name in ("m/c/a", "m/c/b", "m/latest.json", "other/c/a"):
        bucket.create(name, b"x")
    assert sorted(bucket.names("m/c")) == ["m/c/a", "m/c/b"]
    assert bucket.names("none") == []


def test_what_is_not_there_is_named_and_removed_without_complaint(bucket: Bucket) -> None:
    tag = bucket.create("m/a", b"x")
    for _ in range(2):
        bucket.remove("m/a")
    with pytest.raises(FileNotFoundError, match="no such object") as said:
        bucket.read("m/a")
    assert said.value.filename == "m/a"
    with pytest.raises((ChangedError, FileNotFoundError)):
        bucket.replace("m/a", b"y", tag)


def test_a_large_object_comes_back(bucket: Bucket) -> None:
    raw = bytes(range(256)) * (1 << 15)
    bucket.create("m/large", raw)
    found = bucket.read("m/large")
    assert found is not None
    assert found.raw == raw


@pytest.fixture
def failing() -> Iterator[tuple[str, list[int]]]:
    """A server that answers with the last of some statuses, and an error that names a secret."""
    statuses: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = b"<Error><Message>of topsecret</Message></Error>"
            self.send_response(statuses[-1])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", statuses
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [400, 403, 500, 503])
def test_an_error_of_the_store_has_advice_and_no_secret(
    failing: tuple[str, list[int]], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, statuses = failing
    statuses.append(status)
    secret = KEYS | {"AWS_SECRET_ACCESS_KEY": "topsecret", "AWS_SESSION_TOKEN": "topsecret"}
    for name, value in (secret | {"AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true"}).items():
        monkeypatch.setenv(name, value)
    bucket = open_bucket("s3://bucket/prefix")
    for use in (lambda: bucket.read("m/a", {}), lambda: bucket.create("m/a", b"x")):
        with pytest.raises(OSError, match=f"s3://bucket/prefix .* {status} .* AWS_") as said:
            use()
        assert "topsecret" not in str(said.value)
        assert said.value.__cause__ is None


def test_a_store_that_answers_nothing_is_given_up(
    s3: S3Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket(monkeypatch, "s3://bucket/still")
    tag = bucket.create("m/a", b"x")
    monkeypatch.setattr(buckets, "QUICK_SECONDS", 1)
    bucket = open_bucket("s3://bucket/still")
    began = time.monotonic()
    with s3.standing_still(), pytest.raises(OSError, match="cannot be used now"):
        bucket.read("m/a", tag)
    assert time.monotonic() - began < 20

    def answers() -> bool:
        with contextlib.suppress(OSError):  # it wakes slowly on a busy machine
            return bucket.read("m/a", tag) is None
        return False

    wait_for(answers)


def test_a_plain_server_has_to_be_allowed(s3: S3Process, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket(monkeypatch, "s3://bucket/plain")
    bucket.create("m/a", b"x")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(OSError, match="cannot be used now"):
        open_bucket("s3://bucket/plain").read("m/a")


def test_half_of_a_key_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(AddressError, match=r"Missing AccessKeyId.*AWS_"):
        open_bucket("s3://bucket/prefix")
