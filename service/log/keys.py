"""The names of a model's keys in the log's server, and of the fields of its entries.

Keys carry the model's name in literal braces, so that a Redis Cluster keeps them in one slot.
"""

from dataclasses import dataclass
from functools import cached_property

from streams.batch import BATCH, log_key


class Field:
    """Fields of the entries of the streams."""

    BATCH = BATCH
    """Examples as safetensors (see `streams.batch`)."""
    JSON = "json"
    """Examples as JSON."""
    SOURCE = "source"
    """``http`` if the service itself appended the entry."""
    CUT = "cut"
    """A cut as JSON (see `service.log.cuts`)."""


@dataclass(frozen=True)
class Keys:
    """The keys of one model."""

    model: str

    @cached_property
    def log(self) -> str:
        """Stream of the entries, each with a field ``batch`` or ``json``."""
        return log_key(self.model)

    @cached_property
    def cuts(self) -> str:
        """Stream of the trainer's decisions; cut k has the id ``k-0``."""
        return self._key("cuts")

    @cached_property
    def dead(self) -> str:
        """Stream of the discarded entries, with ``entry`` and ``reason``, and of the skipped
        batches, with ``version``, ``begin``, ``end``, ``examples`` and ``reason``."""
        return self._key("dead")

    @cached_property
    def aside(self) -> str:
        """Version of the model after the last skipped batch that is recorded in `dead`."""
        return self._key("aside")

    @cached_property
    def uuid(self) -> str:
        """Name of the log; it is made with the log and vanishes with it."""
        return self._key("uuid")

    @cached_property
    def epoch(self) -> str:
        """Number of trainers so far; only the newest may append cuts."""
        return self._key("epoch")

    @cached_property
    def lease(self) -> str:
        """Holder of the lease, for some seconds (see `service.log.lease`)."""
        return self._key("lease")

    def idempotency(self, digest: str) -> str:
        """Return the key that remembers an Idempotency-Key by its digest."""
        return self._key(f"key:{digest}")

    def _key(self, name: str) -> str:
        return f"funnel:{{{self.model}}}:{name}"
