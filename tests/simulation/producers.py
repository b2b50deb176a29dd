"""Producers in a simulation: clients that post and retry, programs that append, and poison."""

import asyncio
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import orjson

from service.log.entries import Fields
from service.log.errors import LogUnavailable
from service.log.intake import KeyInFlightError, KeyReusedError
from service.log.keys import Field, Inputs
from service.log.position import EntryId
from streams.batch import Batch, Labels
from streams.rows.entry import to_bytes
from streams.rows.records import from_json
from tests.simulation.chain import BAD, IS_BAD, NUMBER
from tests.simulation.oracle import Sent, ViolationError
from tests.simulation.process import RefusedError

if TYPE_CHECKING:
    from tests.simulation.world import World

FEATURES, CLASSES = 2, 3
OPEN_FEATURES = 784
"""Features of an open model that learns dense ones."""
PATIENCE_SECONDS = 1.5
"""After so long a client gives a request up, and tries again."""
NO_CLASS: Fields = {b"batch": Batch(np.ones((2, 2), np.float32), np.full(2, 9)).to_bytes()}
"""Examples of a class that there is not; a number may be 9."""
OTHER = b" "
"""The end of a payload that makes it another one."""
POISON: tuple[Fields, ...] = (
    {b"batch": b"poison"},
    {b"batch": b""},
    {b"note": b"by hand"},
    {b"json": b'{"features": [[1, 2]], "labels": [0'},
    {b"json": b'{"features": [[1, 2, 3]], "labels": [0]}'},
    {b"json": b'{"features": [[1, NaN]], "labels": [0]}'},
    {b"json": b"[" * 2_000},
    {b"batch": Batch(np.ones((2, 5), np.float32), np.zeros(2, np.int64)).to_bytes()},
    NO_CLASS,
    {b"batch": Batch(np.full((2, 2), np.inf, np.float32), np.zeros(2, np.int64)).to_bytes()},
    {b"batch": (1 << 62).to_bytes(8, "little") + b"{}"},
)
"""Entries that nobody can learn."""


class Producers:
    """All producers of a run.

    Args:
        world: where they send to.
    """

    def __init__(self, world: "World") -> None:
        self._world, self._rng = world, random.Random(f"{world.plan.seed}/producers")
        self._kinds = random.Random(f"{world.plan.seed}/kinds")
        self._next = 0
        self.acknowledged: list[int] = []
        """Numbers of the examples that a server has confirmed."""

    def meaning(self) -> tuple[bytes, Sent]:
        """Return the payload and the meaning of the next entry."""
        rng, world = self._rng, self._world
        n = rng.choice((1, 2, 5, rng.randint(1, 2 * world.plan.batch_size)))
        numbers = tuple(range(self._next, self._next + n))
        self._next += n
        is_bad = rng.random() < 0.1
        features = np.array([[k, BAD if is_bad else 0.0] for k in numbers], np.float32)
        if world.plan.is_real:
            features = np.random.default_rng(numbers[0]).normal(size=features.shape)
            is_bad = False
        if world.plan.is_named:
            return _rows(numbers), Sent(numbers)
        if world.plan.is_open:
            kind = self._kinds.choice(world.plan.sends)
            return _of_kind(kind, numbers, is_bad), Sent(numbers, is_bad=is_bad, kind=kind)
        labels: Labels = np.array(numbers) % CLASSES
        if world.plan.is_numeric:
            labels = (100.0 * features[:, 0] + 0.1 * labels).astype(np.float32)
        batch = Batch(features.astype(np.float32), labels)
        return batch.to_bytes(), Sent(numbers, is_bad=is_bad)

    def field(self, payload: bytes) -> str:
        """Return the field of an entry that holds examples."""
        plan, kind = self._world.plan, self._world.server.meanings[payload].kind
        return Field.ARROW if plan.is_named or kind.startswith(Inputs.ROWS) else Field.BATCH

    async def run(self) -> None:
        """Send all entries, and return when each is confirmed or given up."""
        plan, rng = self._world.plan, self._rng
        pause = plan.seconds / plan.entries
        sending = []
        for _ in range(plan.entries):
            await asyncio.sleep(rng.choice((0.0, rng.expovariate(1 / pause))))
            sending.append(asyncio.create_task(self._send()))
        for one in sending:
            await one

    async def _send(self) -> None:
        rng, world = self._rng, self._world
        if rng.random() < world.plan.poison:
            poison = rng.choice(POISON)
            if not (world.plan.is_numeric and poison is NO_CLASS):
                self._add(dict(poison))
            return
        payload, sent = self.meaning()
        world.server.meanings[payload] = sent
        assert sent.numbers is not None
        claimed = world.server.inputs
        try:
            match rng.choice(("add", "post", "keyed", "keyed")):
                case "add":
                    is_added = self._add({self.field(payload).encode(): payload}) is not None
                    acknowledged = is_added and sent.fits(claimed)
                case "post":
                    acknowledged = await self._post(payload, None) is not None
                case _:
                    acknowledged = await self._post_keyed(payload) is not None
        except RefusedError as error:
            world.note("a client", f"examples of {sent.kind} are refused: {error}", "refused")
            if sent.kind == world.server.inputs:
                world.violate(ViolationError(f"what came first, {sent.kind}, is refused: {error}"))
            return
        if acknowledged:
            self.acknowledged += sent.numbers

    def _add(self, fields: Fields) -> EntryId | None:
        """Append as a program with access to the server does; return the id if it is confirmed."""
        world = self._world
        try:
            world.server.check_up()
            entry = world.server.add(fields)
        except LogUnavailable:
            return None
        return None if self._rng.random() < world.plan.loss else entry

    async def _post(self, payload: bytes, key: str | None) -> EntryId | None:
        rng, world = self._rng, self._world
        process = rng.choice([p for p in world.processes if p.is_up] or world.processes)
        try:
            field = self.field(payload.removesuffix(OTHER))
            entry = await process.append(payload, key, PATIENCE_SECONDS, field)
        except (LogUnavailable, KeyInFlightError) as error:
            world.note("a client", f"{process.name} does not confirm {key}: {error}")
            return None
        world.note("a client", f"{process.name} confirms {entry}, key {key}")
        if world.plan.kind == "plain" and entry not in world.server.ever:
            world.violate(ViolationError(f"{entry} is acknowledged, and not in the log"))
        if process.is_up and rng.random() < 0.5:
            process.watch(entry)
        return entry

    async def _post_keyed(self, payload: bytes) -> EntryId | None:
        """Post with a key until it is confirmed; then post again, and post something else."""
        rng, world = self._rng, self._world
        key = f"key {self._next}"
        entry = await self._post(payload, key)
        while entry is None and not world.is_over:
            await asyncio.sleep(rng.uniform(0.1, 0.5))
            entry = await self._post(payload, key)
        if entry is None or world.plan.kind != "plain":
            return entry
        if rng.random() < 0.2:
            again = await self._post(payload, key)
            if again not in (entry, None):
                world.violate(ViolationError(f"{key} made two entries, {entry} and {again}"))
        if rng.random() < 0.1:
            try:
                other = await self._post(payload + OTHER, key)
            except (KeyReusedError, RefusedError):
                other = None
            if other is not None:
                world.violate(ViolationError(f"{key} is accepted with another payload"))
        return entry


def _rows(numbers: Sequence[int]) -> bytes:
    """Return rows of which later ones bring columns, kinds and labels that are new."""
    rows: list[dict[str, object]] = []
    for k in numbers:
        row: dict[str, object] = {"size": k * 0.37 % 5, "kind": f"kind {k % 7}"}
        rows.append(row | {f"late {k // 16}": k % 3 if k % 5 else None})
    labels = [f"label {k % (2 + k // 20)}" for k in numbers]
    return to_bytes(from_json(orjson.dumps({"rows": rows, "labels": labels}), True))


def _of_kind(kind: str, numbers: Sequence[int], is_bad: bool) -> bytes:
    """Return examples of a kind that an open model may learn."""
    are_numbers, bad = kind.endswith(Inputs.OF_NUMBERS), BAD if is_bad else 0.0
    if kind.startswith(Inputs.ROWS):
        rows = [{NUMBER: k, IS_BAD: bad} for k in numbers]
        labels = [k + 0.5 if are_numbers else f"label {k % CLASSES}" for k in numbers]
        return to_bytes(from_json(orjson.dumps({"rows": rows, "labels": labels}), True))
    features = np.zeros((len(numbers), OPEN_FEATURES), np.float32)
    features[:, 0], features[:, 1] = numbers, bad
    labels_ = np.array(numbers, np.float32) + 0.5 if are_numbers else np.array(numbers) % CLASSES
    return Batch(features, labels_).to_bytes()
