"""The disk: the system's, and the one that the simulator breaks, agree while nothing is broken."""

import random
from pathlib import Path

import pytest

from service.trainer.disk import Disk, SystemDisk
from tests.simulation.disk import Platter, SimulatedDisk


def simulated(platter: Platter | None = None) -> SimulatedDisk:
    return SimulatedDisk(platter or a_platter(0), lambda moment, operation: None)


def a_platter(seed: int) -> Platter:
    return Platter(random.Random(seed), lambda path, raw: None)


@pytest.fixture(params=["system", "simulated"])
def disk(request: pytest.FixtureRequest) -> Disk:
    return SystemDisk() if request.param == "system" else simulated()


def put(disk: Disk, path: Path, raw: bytes) -> None:
    with disk.create(path) as file:
        file.write(raw)
        file.sync()
    disk.sync(path.parent)


def test_a_file_is_listed_and_read(disk: Disk, tmp_path: Path) -> None:
    disk.make(tmp_path)
    put(disk, tmp_path / "a", b"one")
    assert disk.list(tmp_path) == [tmp_path / "a"]
    assert disk.read(tmp_path / "a") == b"one"
    with pytest.raises(FileExistsError):
        disk.create(tmp_path / "a")


def test_a_name_is_given_to_another_file(disk: Disk, tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(disk, tmp_path / name, name.encode())
    disk.rename(tmp_path / "a", tmp_path / "b")
    assert disk.list(tmp_path) == [tmp_path / "b"]
    assert disk.read(tmp_path / "b") == b"a"
    with pytest.raises(FileNotFoundError):
        disk.rename(tmp_path / "a", tmp_path / "b")


def test_a_file_that_is_gone_is_removed_without_complaint(disk: Disk, tmp_path: Path) -> None:
    put(disk, tmp_path / "a", b"one")
    for _ in range(2):
        disk.remove(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        disk.read(tmp_path / "a")


def test_a_power_cut_spares_what_was_synced_and_not_always_the_rest() -> None:
    kept = set()
    for seed in range(50):
        platter, folder = a_platter(seed), Path("/folder")
        disk = simulated(platter)
        put(disk, folder / "synced", b"synced")
        with disk.create(folder / "torn") as file:
            file.write(b"torn")
        platter.cut_power()
        assert disk.read(folder / "synced") == b"synced"
        kept.add(disk.read(folder / "torn") if len(disk.list(folder)) == 2 else None)
    assert {None, b"", b"torn"} < kept
