"""The server that keeps the log: the connection, and whether the server is fit for it."""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from service.log.errors import LogError, LogUnavailable
from service.log.keys import Keys

SOCKET_SECONDS = 15.0
"""Time-out of the connection; longer than any BLOCK."""


def connect(url: str) -> Redis:
    """Return a client that never repeats a command by itself.

    redis-py would repeat an XADD whose reply was lost, and make two entries of one.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with user and password if need be.
    """
    return Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=5,
        health_check_interval=0,
        client_name="funnel",
        protocol=2,
    )


async def has_log(url: str, model: str) -> bool:
    """Return whether a server has the log of a model, or its name or its cuts.

    Raises:
        LogUnavailable: it cannot be asked.
    """
    keys = Keys(model)
    return await _has_any(url, keys.log, keys.uuid, keys.cuts)


async def has_cuts(url: str, model: str) -> bool:
    """Return whether a trainer has recorded a cut in the log of a model.

    Raises:
        LogUnavailable: it cannot be asked.
    """
    return await _has_any(url, Keys(model).cuts)


async def _has_any(url: str, *keys: str) -> bool:
    redis = connect(url)
    try:
        return bool(await redis.exists(*keys))
    except (RedisError, OSError) as error:
        raise LogUnavailable(f"the log cannot be reached: {error}") from error
    finally:
        await redis.aclose()


async def check_server(redis: Redis) -> list[str]:
    """Return warnings about a server's durability.

    Raises:
        LogError: it is too old, or evicts streams when its memory is full.
    """
    warnings = []
    try:
        info = await redis.info("server") | await redis.info("memory")
    except ResponseError:
        return ["the server does not show its state; is it durable, without eviction?"]
    try:
        config = await redis.config_get("maxmemory-policy", "appendonly", "appendfsync")
    except ResponseError:
        config = {}
        warnings.append("the server does not show its configuration; is it durable?")
    version = str(info.get("valkey_version") or info["redis_version"])
    if int(version.split(".")[0]) < 7:
        raise LogError(f"Redis {version} is too old: Funnel needs 7 or later")
    policy = str(config.get("maxmemory-policy") or info.get("maxmemory_policy", "noeviction"))
    if policy.startswith("allkeys"):
        raise LogError(
            f"the server's maxmemory-policy is {policy}: it may throw the log away; "
            "set it to noeviction"
        )
    if policy != "noeviction":
        warnings.append(
            f"the server's maxmemory-policy is {policy}: when its memory is full it may throw "
            "away Idempotency-Keys, so that a retry is learned twice; set it to noeviction"
        )
    if config.get("appendonly") == "no":
        warnings.append("the server's append-only file is off: acknowledged examples may be lost")
    elif config.get("appendfsync", "always") != "always":
        warnings.append(
            f"the server's appendfsync is {config.get('appendfsync')}: "
            "a power cut may lose the last acknowledged examples"
        )
    return warnings
