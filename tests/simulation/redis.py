"""A client of a server in memory, as far as `service.log.intake` uses one."""

from types import TracebackType
from typing import Any, Self

import orjson
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from service.log import scripts
from service.log.entries import Fields
from service.log.errors import LogUnavailable
from service.log.position import ORIGIN, TOP
from tests.support.memory_log import MemoryServer, Network


class MemoryRedis:
    """A client.

    Args:
        server: that it talks to.
        network: the way there and back.
    """

    def __init__(self, server: MemoryServer, network: Network | None = None) -> None:
        self.server, self.network = server, network or Network()

    def pipeline(self, transaction: bool) -> "Pipeline":
        """Return a pipeline; the server executes its commands one by one."""
        assert not transaction
        return Pipeline(self)

    async def aclose(self) -> None:
        """Nothing is open."""

    async def eval(self, script: str, _: int, *arguments: str) -> bytes:
        """Claim the log, which is the only script that is sent alone.

        Raises:
            RedisConnectionError: the reply does not come.
        """
        assert script == scripts.CLAIM_INPUTS
        server, inputs = self.server, arguments[-1]

        def claim() -> bytes:
            server.check_writable()
            return server.claim(inputs).encode()

        try:
            return await self.network.call("claim", claim)
        except LogUnavailable as error:
            raise RedisConnectionError(str(error)) from error

    def execute(self, *command: Any) -> Any:
        """Execute a command at the server."""
        match command:
            case ("XADD", key, "*", *fields) if key.endswith(":asked"):
                return str(self.server.ask(_raw(fields))).encode()
            case ("XADD", _, "*", *fields):
                return str(self._add(fields)).encode()
            case ("EVAL", scripts.APPEND_ONCE, 3, _, key, _, digest, _, *arguments):
                return self._append_once(key, digest, *arguments)
            case ("EVAL", scripts.DESCRIBE, 2, _, _, uuid):
                return self._describe(uuid)
        raise ResponseError(f"unknown command {command[:2]}")

    def _add(self, fields: list[Any]) -> Any:
        return self.server.add(_raw(fields))

    def _append_once(
        self, key: str, digest: str, payload: bytes, checksum: int, kept: int, field: str
    ) -> bytes:
        """Append an entry unless its key is known; all keys are among the newest ones."""
        keys = self.server.keys
        assert len(keys) < kept, "no key is forgotten here"
        if key not in keys:
            entry = self._add([field, payload, "source", "http", "crc32", checksum])
            answer = f"{digest} {entry}".encode()
            if entry == TOP:
                return answer
            keys[key] = answer
        return keys[key]

    def _describe(self, uuid: str) -> bytes:
        server = self.server
        if server.uuid is None:
            server.check_writable()
            server.uuid = uuid
        if server.last == ORIGIN:
            return orjson.dumps({"kind": "none", "uuid": server.uuid})
        first = next(iter(server.entries), None)
        return orjson.dumps(
            {
                "kind": "stream",
                "uuid": server.uuid,
                "length": len(server.entries),
                "entries-added": server.added,
                "last-generated-id": str(server.last),
                "first-entry": first and str(first),
            }
        )


def _raw(fields: list[Any]) -> Fields:
    raw = [f if isinstance(f, bytes) else str(f).encode() for f in fields]
    return dict(zip(raw[::2], raw[1::2], strict=True))


class Pipeline:
    """Commands that are sent at once.

    Args:
        client: sends them.
    """

    def __init__(self, client: MemoryRedis) -> None:
        self._client = client
        self._commands: list[tuple[Any, ...]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def execute_command(self, *command: Any) -> None:
        """Add a command."""
        self._commands.append(command)

    def eval(self, script: str, *arguments: Any) -> None:
        """Add a script."""
        self._commands.append(("EVAL", script, *arguments))

    async def execute(self, raise_on_error: bool) -> list[Any]:
        """Send the commands, and return their replies, errors among them.

        Raises:
            RedisConnectionError: the replies do not come.
        """
        assert not raise_on_error
        client, network = self._client, self._client.network

        def execute() -> list[Any]:
            arrived = network.arrived(len(self._commands))
            replies: list[Any] = []
            for command in self._commands[:arrived]:
                try:
                    replies.append(client.execute(*command))
                except LogUnavailable as error:
                    replies.append(ResponseError(str(error)))
            if arrived < len(self._commands):
                raise LogUnavailable("the connection was lost while the commands were sent")
            return replies

        try:
            return await network.call("append", execute)
        except LogUnavailable as error:
            raise RedisConnectionError(str(error)) from error
