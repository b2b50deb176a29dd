"""A replica at its place in the log: what it repeats, and what it refuses to."""

from dataclasses import replace

import pytest

from service.log.log import GapError, Log, LogError
from service.log.position import Position
from tests.service.log.test_log import with_log
from tests.support.harness import RedisProcess
from tests.support.replicas import a_replica, fill, go_on, learn


def test_a_cut_that_no_longer_fits_its_entries_is_not_repeated(
    server: RedisProcess, model: str
) -> None:
    async def use(log: Log) -> None:
        entries, replica = await fill(log, 4), a_replica()
        pending = await replica.recover(log, False, go_on)
        await learn(replica, log, pending, 20)
        await replica.record(log, [pending.take(40)[0]])
        await log.redis.xdel(log.keys.log, str(entries[2]))
        replica.resign()
        with pytest.raises(LogError, match="within another entry"):
            await replica.recover(log, False, go_on)
        assert replica.state.examples == 20

    with_log(server, model, use)


def test_an_entry_learned_in_part_that_is_gone_is_passed_over_and_replay_agrees(
    server: RedisProcess, model: str
) -> None:
    async def use(log: Log) -> None:
        entries, replica = await fill(log, 3), a_replica()
        pending = await replica.recover(log, False, go_on)
        await learn(replica, log, pending, 30)
        before = replica.at
        await log.redis.xdel(log.keys.log, str(entries[1]))
        replica.resign()
        pending = await replica.recover(log, True, go_on)
        await learn(replica, log, pending, 20)
        assert (replica.at.position, replica.at.entries) == (Position(entries[2]), 3)
        again = a_replica()
        again.progress = before
        await again.recover(log, False, go_on)
        assert again.at == replace(replica.at, epoch=again.at.epoch)

    with_log(server, model, use)


def test_a_gap_is_accepted_at_the_start_alone(server: RedisProcess, model: str) -> None:
    async def use(log: Log) -> None:
        await fill(log, 1)
        replica = a_replica()
        await learn(replica, log, await replica.recover(log, True, go_on), 20)
        await log.redis.delete(log.keys.log, log.keys.uuid)
        with pytest.raises(GapError, match="another log"):
            await replica.recover(log, True, go_on)

    with_log(server, model, use)


def test_each_who_takes_over_has_an_epoch_of_its_own_in_its_place(
    server: RedisProcess, model: str
) -> None:
    async def use(log: Log) -> None:
        replicas = [a_replica() for _ in range(3)]
        for replica in replicas:
            await replica.recover(log, False, go_on)
        assert [replica.at.epoch for replica in replicas] == [1, 2, 3]

    with_log(server, model, use)


def test_what_is_learned_of_an_entry_does_not_count_among_what_waits(
    server: RedisProcess, model: str
) -> None:
    async def use(log: Log) -> None:
        await fill(log, 3)
        replica = a_replica()
        await learn(replica, log, await replica.recover(log, False, go_on), 30)
        assert replica.backlog(3, mean_entry=20.0) == 30

    with_log(server, model, use)


def test_after_a_log_begun_anew_batches_left_out_are_noted_again(
    server: RedisProcess, model: str
) -> None:
    async def use(log: Log) -> None:
        await fill(log, 2)
        replica = a_replica()
        await learn(replica, log, await replica.recover(log, False, go_on), 20)
        await log.put_aside([["7", "0-0", "1-0", "20", "why"]])
        await log.redis.delete(log.keys.log, log.keys.cuts)  # as a damaged log's error advises
        await fill(log, 1)
        await a_replica().recover(log, True, go_on)
        await log.put_aside([["1", "0-0", "1-0", "20", "why"]])
        assert [n[b"version"] for _, n in await log.redis.xrange(log.keys.dead)] == [b"7", b"1"]

    with_log(server, model, use)
