"""A data folder of an older version opens with its log, loses nothing, and goes on exactly."""

import json
from pathlib import Path

import pytest

from service.log.errors import LogError
from tests.golden.compare import difference, read
from tests.golden.digests import bits
from tests.golden.folders import (
    CURRENT,
    CUTS,
    FOLDERS,
    LOG,
    OLDER,
    checkpointed,
    distance,
    dump,
    put_back,
    reopen,
)
from tests.support.harness import RedisProcess


@pytest.mark.parametrize("name", [*CURRENT, *OLDER])
def test_a_data_folder_and_its_log_open_and_go_on(name: str, tmp_path: Path) -> None:
    golden = read(FOLDERS / name / "expected.json")
    found = reopen(tmp_path, name)
    is_exact = golden.pop("bits") == bits()
    if not is_exact:
        assert distance(found.pop("predicted"), golden.pop("predicted")) <= 0.1
        for state in (golden["opened"], golden["after"], found["opened"], found["after"]):
            del state["sha256"]
    assert not (unlike := difference(golden, found)), unlike


@pytest.mark.parametrize("name", OLDER)
def test_cuts_of_other_arithmetic_are_refused_by_name_and_stay_as_they_are(
    name: str, tmp_path: Path
) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        service = put_back(tmp_path, redis, name, is_stopped=False)
        with pytest.raises(LogError, match=rf"cut {checkpointed(name) + 1} was learned by version"):
            service.start()
        with redis.client() as direct:
            assert dump(direct)[CUTS] == read(FOLDERS / name / "log.json")[CUTS]
    finally:
        redis.kill()


@pytest.mark.parametrize("name", [*CURRENT, *OLDER])
def test_the_log_goes_beyond_the_checkpoint_in_cuts_and_beyond_the_cuts_in_entries(
    name: str,
) -> None:
    keys = read(FOLDERS / name / "log.json")
    learned = checkpointed(name)
    cuts = [fields["cut"] for i, fields in keys[CUTS]["entries"] if int(i.split("-")[0]) > learned]
    assert len(cuts) > 5
    assert any("rates" in cut for cut in cuts)
    assert any('"dead":["' in cut for cut in cuts)
    ends = json.loads(cuts[-1])["position"].partition("+")[0]
    assert tuple(map(int, ends.split("-"))) < tuple(map(int, keys[LOG]["last"].split("-")))
