"""The log's server in a simulation: it knows what each entry means, and checks what trainers do."""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from service.fold.spec import Spec
from service.log.cuts import Begin, Cut
from service.log.entries import Fields
from service.log.errors import LogUnavailable
from service.log.keys import Inputs
from service.log.labels import HASH_BYTES
from service.log.position import ORIGIN, EntryId, Position
from service.process import Clock
from tests.simulation.loop import OWNER, Owner
from tests.simulation.oracle import Oracle, Sent, ViolationError
from tests.support.memory_log import MemoryServer

SYNC_SECONDS = 1.0
"""Time between syncs, where the server does not sync before it answers."""


@dataclass
class _Saved:
    at: float
    content: dict[str, Any]


class SimulatedServer(MemoryServer):
    """A server whose every change is checked.

    Args:
        clock: its own.
        oracle: told of the recorded cuts.
        always: whether it syncs before it answers; otherwise a power cut loses the last second.
        digest_of: returns the digest of the state of a process.
        reach: returns the cut up to which the log may be trimmed.
        violated: called with a violation; in the process that causes it, nobody might see it.
    """

    def __init__(
        self,
        clock: Clock,
        oracle: Oracle,
        always: bool,
        digest_of: Callable[[Owner], bytes],
        reach: Callable[[], int],
        violated: Callable[[ViolationError], object],
    ) -> None:
        super().__init__(clock)
        self.oracle, self.always = oracle, always
        self._digest_of, self._reach, self._violated = digest_of, reach, violated
        self.is_down = False
        self.decides = False
        """Whether the first entries decide what is learned."""
        self.meanings: dict[bytes, Sent] = {}
        """What payloads mean; all others are poison."""
        self.ever: dict[EntryId, Sent] = {}
        """Every entry that was added to this log."""
        self.deleted: set[EntryId] = set()
        """Those that others than trainers deleted."""
        self.forgiven: set[int] = set()
        """Numbers of examples that others deleted or the server lost."""
        self.forgotten: set[int] = set()
        """Numbers of examples whose Idempotency-Key the server lost: a client that tries again adds
        them again."""
        self.letters: list[Fields] = []
        self.trimmed_to = 0
        self._lost_up_to = ORIGIN
        """The highest id that a loss has taken back. If it is given again, as after a clock went
        back, nobody can tell what was learned."""
        self._gone: dict[EntryId, Sent] = {}
        """The entries of the stream that was lost last. A trainer that read some of them in time
        may still record cuts there, although new entries have lower ids after a step of the
        clock."""
        self._holders: dict[int, Owner] = {}
        self.recorded = 0, ""
        """Epoch of the newest record, and name of the trainer that made it."""
        self._saved: _Saved | None = None

    @property
    def newest(self) -> EntryId:
        """Id of the last entry that is still there."""
        return next(reversed(self.entries), ORIGIN)

    def check_up(self) -> None:
        """Raise LogUnavailable if it is down."""
        if self.is_down:
            raise LogUnavailable("the log cannot be reached: connection refused")

    def check_writable(self) -> None:
        super().check_writable()
        if not self.always:
            self._save()

    def add(self, fields: Fields, entry: EntryId | None = None) -> EntryId:
        added = super().add(fields, entry)
        for later in [e for e in reversed(self.ever) if e >= added]:  # of a stream that is gone
            del self.ever[later]
        payload = fields.get(b"batch", fields.get(b"arrow", fields.get(b"labels", b"")))
        sent = self.meanings.get(payload, Sent(None))
        if sent.labels is not None:
            self.oracle.seen.label(added)
        is_http = fields.get(b"source") == b"http"
        if added <= self._lost_up_to:
            self.forgiven.update(sent.numbers or ())
        self.ever[added] = replace(sent, source="http" if is_http else "redis")
        return added

    def ask(self, fields: Fields) -> EntryId:
        entry, hashes = super().ask(fields), fields[b"ids"]
        own = [hashes[k : k + HASH_BYTES] for k in range(0, len(hashes), HASH_BYTES)]
        self.oracle.seen.ask(entry, own)
        return entry

    def ask_by_hand(self, fields: Fields) -> None:
        """Append questions that no client has asked, if the server takes them."""
        with contextlib.suppress(LogUnavailable):
            self.check_up()
            super().ask(fields)

    def delete_by_hand(self, entries: list[EntryId]) -> None:
        """Delete entries, as another program might."""
        self.delete(*entries)
        self.deleted.update(entries)
        self._forgive(entries)

    def _forgive(self, entries: list[EntryId]) -> None:
        for entry in entries:
            self.forgiven.update(self.ever[entry].numbers or ())

    def lose(self) -> None:
        self._forgive(list(self.ever))
        self._lost_up_to = max(self._lost_up_to, self.last)
        self.deleted = set(self.ever)  # trainers may have read them in time
        self._gone = dict(self.ever)
        super().lose()

    def flush(self) -> None:
        """Lose everything, as another program might do to it."""
        for sent in self.ever.values():
            self.forgotten.update(sent.numbers or ())
        self.archive()
        self.epoch, self.lease, self.keys = 0, None, {}

    def flush_streams(self) -> None:
        """Lose the entries and the cuts, as when an operator deletes both."""
        self.lose()
        self.cuts, self.last_cut = {}, 0
        self.oracle.forget()

    def archive(self) -> None:
        super().archive()
        self.oracle.forget()
        self.trimmed_to = 0

    def take_epoch(self, at_least: int) -> int:
        epoch, owner = super().take_epoch(at_least), OWNER.get()
        assert owner is not None
        self._holders[epoch] = owner
        return epoch

    def record(self, epoch: int, number: int, cut: Cut) -> None:
        owner = OWNER.get()
        assert owner is not None
        if self.always and self._holders.get(epoch) is not owner:
            self._violate(f"{owner.name} appends in epoch {epoch}, which is another's")
        entries = self._gone if cut.position.entry > self.last else self.ever
        if isinstance(cut.command, Begin) and self.decides:
            self._check_kind(Spec.of(dict(cut.command.spec)))
        entries = {
            entry: sent if sent.fits(self.inputs) else replace(sent, numbers=None)
            for entry, sent in entries.items()
        }
        try:
            self.oracle.record(
                number, cut, entries, self.deleted, self._digest_of(owner), not self.always
            )
        except ViolationError as violation:
            self._violated(violation)
        super().record(epoch, number, cut)
        self.recorded = epoch, owner.name

    def _check_kind(self, spec: Spec) -> None:
        """Check that a model that begins is of the kind that its log is claimed for."""
        kind = Inputs.ROWS if spec.shape is None else Inputs.FEATURES
        kind += Inputs.OF_NUMBERS if spec.predicts.is_numeric else ""
        if kind != self.inputs:
            self._violate(f"a model of {kind} begins in a log of {self.inputs}")

    def bury(self, letter: Fields) -> None:
        super().bury(letter)
        self.letters.append(letter)

    def trim(self, position: Position, cut: int, asked: EntryId = ORIGIN) -> None:
        if cut > self.trimmed_to and (reach := self._reach()) < cut:
            self._violate(f"the log is trimmed to cut {cut}, but may be only to cut {reach}")
        self.trimmed_to = max(self.trimmed_to, cut)
        super().trim(position, cut, asked)

    def _violate(self, what: str) -> None:
        self._violated(ViolationError(what))

    def _save(self) -> None:
        now = self.clock.monotonic()
        if self._saved is None or now - self._saved.at >= SYNC_SECONDS:
            self._saved = _Saved(now, self._content())

    def _content(self) -> dict[str, Any]:
        names = (
            "entries", "last", "added", "cuts", "last_cut", "every_cut", "dead", "uuid", "epoch",
            "aside", "lease", "keys", "ever", "deleted", "letters",
        )  # fmt: skip
        return {name: copy.copy(getattr(self, name)) for name in names} | {
            "tips": list(self.oracle.tips)
        }

    def cut_power(self) -> bool:
        """Go back to what was synced; return whether anything was lost."""
        if self.always or self._saved is None:
            return False
        content, before = self._saved.content, self.ever
        self._lost_up_to = max(self._lost_up_to, self.last)
        self.oracle.tips = content.pop("tips")
        for name, value in content.items():
            setattr(self, name, value)
        for entry, sent in before.items():
            if entry not in self.ever:
                self.forgiven.update(sent.numbers or ())
                self.forgotten.update(sent.numbers or ())
        self._saved = None
        return True
