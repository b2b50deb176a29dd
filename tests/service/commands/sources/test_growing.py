"""A file that grows: whole lines, each once, also when it is rotated, renamed or truncated."""

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.commands.sources import growing
from service.commands.sources.carrier import Carrier
from service.commands.sources.growing import GrowingFile
from service.commands.sources.reader import SourceError
from service.log.backlog import UNBOUNDED
from service.log.keys import Keys
from service.log.log import RedisLog
from service.log.server import connect
from service.log.sources.offsets import Offsets
from streams.rows.fields import from_fields
from tests.support.harness import RedisProcess

Act = Callable[[], object]


@dataclass
class Carried:
    """A file that is carried into the log of a model, while a test acts on it."""

    server: RedisProcess
    model: str
    path: Path

    def run(self, *acts: tuple[int, Act]) -> list[str]:
        """Carry; act when the log has so many entries more, and stop after the last act.

        Returns:
            What was notified.
        """
        return asyncio.run(asyncio.wait_for(self._run(acts), 60))

    async def _run(self, acts: tuple[tuple[int, Act], ...]) -> list[str]:
        redis, stop, told = connect(self.server.url), asyncio.Event(), list[str]()
        log, offsets = RedisLog(redis, self.model), Offsets(redis, self.model)
        reader = GrowingFile(self.path, "file")
        carrier = Carrier(reader, log, offsets, UNBOUNDED, notify=told.append)
        try:
            running = asyncio.create_task(carrier.run(stop))
            done = len(self.values())
            for more, act in acts:
                done += more
                while len(self.values()) < done:
                    if running.done():
                        await running
                    await asyncio.sleep(0.02)
                act()
            stop.set()
            await running
        finally:
            await reader.close()
            await redis.aclose()
        return told

    def values(self) -> list[object]:
        """The column ``a`` of each entry, in the order of the log."""
        with self.server.client() as redis:
            found = [fields for _, fields in redis.xrange(Keys(self.model).log)]
        return [
            from_fields(own).chunks[0].columns.column("a")[0].as_py()
            if b"arrow" in own else own[b"fault"].decode() for own in found
        ]  # fmt: skip


def lines(first: int, last: int) -> str:
    return "".join(json.dumps({"a": k, "label": "x"}) + "\n" for k in range(first, last))


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.fixture
def carried(server: RedisProcess, model: str, tmp_path: Path) -> Carried:
    return Carried(server, model, tmp_path / "app.ndjson")


def test_lines_are_carried_as_they_are_written_and_only_when_they_are_whole(
    carried: Carried,
) -> None:
    whole = lines(2, 3)
    add(carried.path, lines(0, 2) + "\n\n" + whole[:5])
    carried.run((2, lambda: add(carried.path, whole[5:] + lines(3, 4))), (2, lambda: None))
    assert carried.values() == [0, 1, 2, 3]


def test_a_file_that_is_rotated_is_read_to_its_end_and_then_the_next_one(
    carried: Carried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "ROTATED_SECONDS", 0.2)
    old = carried.path.with_suffix(".1")

    def rotate() -> None:
        carried.path.rename(old)
        carried.path.write_text(lines(2, 4))
        add(old, lines(1, 2))  # by a writer that has not opened the new one yet

    add(carried.path, lines(0, 1))
    carried.run((1, rotate), (3, lambda: None))
    assert carried.values() == [0, 1, 2, 3]


def test_a_file_that_was_renamed_is_the_same_file(carried: Carried) -> None:
    add(carried.path, lines(0, 3))
    carried.run((3, lambda: None))
    carried.path = carried.path.rename(carried.path.with_suffix(".1"))
    add(carried.path, lines(3, 5))
    carried.run((2, lambda: None))
    assert carried.values() == [0, 1, 2, 3, 4]


def test_a_file_that_is_copied_and_emptied_is_a_new_one(carried: Carried) -> None:
    def copy_and_empty() -> None:
        shutil.copy(carried.path, carried.path.with_suffix(".1"))
        carried.path.write_text(lines(3, 5))

    add(carried.path, lines(0, 3))
    carried.run((3, copy_and_empty), (2, lambda: None))
    assert carried.values() == [0, 1, 2, 3, 4]


def test_a_file_that_lost_lines_which_were_carried_is_refused(carried: Carried) -> None:
    add(carried.path, lines(0, 3))
    carried.run((3, lambda: None))
    carried.path.write_text(lines(0, 2))
    with pytest.raises(SourceError, match="ends at offset 46, but the log has it up to 69"):
        carried.run((1, lambda: None))


def test_lines_of_csv_have_the_names_of_the_first_and_a_bad_one_is_a_dead_letter(
    carried: Carried,
) -> None:
    carried.path = carried.path.with_suffix(".csv")
    good = "".join(f"{k},x\n" for k in range(100))
    add(carried.path, "a,label\n" + good + "1,2,3\n" + "7,y\n")
    told = carried.run((102, lambda: add(carried.path, "8,y\n")), (1, lambda: None))
    values = carried.values()
    assert values[:100] == [*range(100)]
    assert "has 3 columns, expected 2" in str(values[100])
    assert values[101:] == [7, 8]
    assert any("becomes a dead letter" in text for text in told)


def test_a_file_that_is_not_there_yet_is_waited_for(carried: Carried) -> None:
    told = carried.run((0, lambda: add(carried.path, lines(0, 2))), (2, lambda: None))
    assert carried.values() == [0, 1]
    assert not told or "No such file" in told[0]
