"""`funnel replay` rebuilds what a service has learned, and trains other models on it."""

import re
from pathlib import Path

from service.trainer.archive.archive import Archive, Limits
from service.trainer.checkpoint import decode
from service.trainer.disk import SystemDisk
from tests.support.cli import funnel
from tests.support.clients import SMALL, digest, learn
from tests.support.clock import StillClock
from tests.support.harness import serving
from tests.support.named import records

ROWS = {"model": "auto", "batch_size": 20, "max_wait_ms": 600_000, "label_ttl": "1h"}


def test_a_version_is_rebuilt_with_the_digest_that_it_had(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL) as service:
        digests = {}
        with service.client() as client:
            for k in range(1, 6):
                learn(client, k)
                digests[k] = digest(client)
        assert service.terminate() == 0
    data, file = tmp_path / "data", tmp_path / "old.safetensors"
    for version, expected in list(digests.items())[1::2]:
        target = "--to-version", str(version)
        ran = funnel("replay", "--from", str(data), *target, "--out", str(file))
        assert ran.returncode == 0, ran.stderr
        assert f"version {version}, {20 * version} examples, sha256 {expected}" in ran.stdout
        copy = decode(file.read_bytes()).copy
        assert (copy.version, copy.sha256()) == (version, expected)
    ran = funnel("replay", "--from", str(data), "--to-version", "99")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "no cut gave the model version 99: it was 5" in ran.stderr
    ran = funnel("replay", "--from", str(tmp_path))
    assert ran.returncode == 2
    assert "--from: " in ran.stderr


def test_another_model_learns_from_an_archive_of_rows_and_labels_that_came_later(
    tmp_path: Path,
) -> None:
    state = f"file://{tmp_path}/store"
    with serving(tmp_path, **ROWS, state=state) as service:
        with service.client() as client:
            for k in range(20):
                rows, labels = records(k, classes=3)
                ids = [f"{k}-{i}" for i in range(20)]
                if k % 2 == 0:
                    body: dict[str, object] = {"rows": rows, "labels": labels}
                    client.post("/learn?wait=applied", json=body).raise_for_status()
                    continue
                asked = {"rows": rows, "ids": ids}
                client.post("/predict", json=asked).raise_for_status()
                body = {"ids": ids, "labels": labels}
                client.post("/labels?wait=applied", json=body).raise_for_status()
            expected = digest(client)
        assert service.terminate() == 0
    archive = Archive(tmp_path / "store/auto/archive", SystemDisk(), Limits(), StillClock(), print)
    assert sum(len(archive.read(name).questions) for name in archive.segments()) == 10
    ran = funnel("replay", "--from", state, "--name", "auto")
    assert ran.returncode == 0, ran.stderr
    assert f"version 20, 400 examples, sha256 {expected}" in ran.stdout
    file = tmp_path / "new.safetensors"
    other = "--model", "logistic", "--optimizer", "adagrad", "--out", str(file)
    ran = funnel("replay", "--from", state, "--name", "auto", *other)
    assert ran.returncode == 0, ran.stderr
    assert f"version 20, 400 examples, sha256 {expected}" in ran.stdout
    names = re.findall(r"(\w+) +400 +0\.(\d{4}) +(\d\.\d{4})", ran.stdout)
    assert [name for name, _, _ in names] == ["original", "new"]
    copy = decode(file.read_bytes()).copy
    assert (copy.spec.model, copy.spec.optimizer, copy.version) == ("logistic", "adagrad", 20)
