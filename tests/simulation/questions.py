"""Clients in a simulation that ask with ids, and send labels: in time, early, twice, or never."""

import asyncio
import random
from typing import TYPE_CHECKING

import numpy as np
import orjson

from service.log.entries import Fields
from service.log.errors import LogUnavailable
from service.log.keys import Field
from service.log.labels import Labels, hash_of
from service.log.questions import Questions
from tests.simulation.joins import ASKED, Label, given
from tests.simulation.oracle import Sent
from tests.simulation.producers import CLASSES, PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.simulation.world import World

DAMAGED: tuple[Fields, ...] = ({b"x": b"y"}, {b"ids": b"half"}, {b"ids": bytes(16), b"batch": b""})
"""Entries of questions that nobody can read."""
TRIES = 4


class Askers:
    """All clients that ask.

    Args:
        world: that they ask.
    """

    def __init__(self, world: "World") -> None:
        self._world, self._rng = world, random.Random(f"{world.plan.seed}/questions")
        self._next = ASKED
        self.acknowledged: list[tuple[Label, int]] = []
        """Labels that a server has confirmed, each with the moment before which it was sent."""

    async def run(self) -> None:
        """Ask all questions and send all labels, and return when each is confirmed or given up."""
        plan, rng = self._world.plan, self._rng
        assert plan.labelling is not None
        asking = []
        for _ in range(plan.labelling.questions):
            await asyncio.sleep(rng.expovariate(plan.labelling.questions / plan.seconds))
            asking.append(asyncio.create_task(self._one()))
        for one in asking:
            await one

    async def _one(self) -> None:
        """Ask some questions in one request, and label them."""
        rng = self._rng
        n = rng.choice((1, 1, 2, 5))
        numbers = range(self._next, self._next + n)
        self._next += n
        labels = [Label(hash_of(f"q{k}"), rng.randrange(CLASSES)) for k in numbers]
        for k, label in zip(numbers, labels, strict=True):
            self._world.oracle.seen.numbers[label.hash] = k
        if rng.random() < 0.05:
            self._world.server.ask_by_hand(dict(rng.choice(DAMAGED)))
        if rng.random() < 0.15:  # the labels overtake the questions
            await self._label(rng.sample(labels, rng.randint(1, n)))
        await self._ask(numbers, [label.hash for label in labels])
        if rng.random() < 0.15:
            return
        await asyncio.sleep(rng.choice((0.0, rng.expovariate(2.0), rng.expovariate(0.5))))
        await self._label(labels)
        if rng.random() < 0.3:
            await self._label(rng.sample(labels, rng.randint(1, n)))
        if rng.random() < 0.3:
            await self._label([Label(own.hash, rng.randrange(CLASSES)) for own in labels])
        if rng.random() < 0.1:
            await self._label([Label(hash_of(f"nobody {self._next}"), 0)])

    async def _ask(self, numbers: range, hashes: list[bytes]) -> None:
        """Ask until it is confirmed, or no more: the same ids may be asked again."""
        rng, world = self._rng, self._world
        features = np.array([[k, 0.0] for k in numbers], np.float32)
        answers = np.array([[given(k)] * CLASSES for k in numbers], np.float16)
        labels = np.zeros(len(numbers), np.int64)
        fields = Questions(features, b"".join(hashes), labels, answers, 1).to_fields()
        for _ in range(TRIES):
            process = rng.choice([p for p in world.processes if p.is_up] or world.processes)
            try:
                entry = await process.ask(fields, PATIENCE_SECONDS)
            except LogUnavailable as error:
                world.note("a client", f"{process.name} does not answer: {error}")
                await asyncio.sleep(rng.uniform(0.1, 0.5))
                continue
            world.note("a client", f"questions {numbers} lie in {entry}", "asked")
            return

    async def _label(self, labels: list[Label]) -> None:
        """Send labels over HTTP until they are confirmed, or by hand."""
        rng, world = self._rng, self._world
        hashes, values = [label.hash for label in labels], [label.label for label in labels]
        payload = Labels(tuple(hashes), tuple(values)).to_json()
        if by_hand := rng.random() < 0.4:
            payload = orjson.dumps({"labels": values, "hashes": [own.hex() for own in hashes]})
        world.server.meanings[payload] = Sent((), labels=tuple(labels))
        before = world.oracle.seen.moments
        for _ in range(TRIES):
            try:
                if by_hand:
                    world.server.check_up()
                    entry = world.server.add({b"labels": payload})
                else:
                    process = rng.choice([p for p in world.processes if p.is_up] or world.processes)
                    entry = await process.append(payload, None, PATIENCE_SECONDS, Field.LABELS)
            except LogUnavailable as error:
                world.note("a client", f"labels are not confirmed: {error}")
                await asyncio.sleep(rng.uniform(0.1, 0.5))
                continue
            world.note("a client", f"labels {values} lie in {entry}", "labelled")
            self.acknowledged += [(label, before) for label in labels]
            return
