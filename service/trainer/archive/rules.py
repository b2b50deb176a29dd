"""The examples that a rebuild skips."""

from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from service.log.cuts import Ordered, Rebuild
from service.log.entries import SOURCE, Fields
from service.log.position import TOP, EntryId
from streams.errors import FunnelError
from streams.examples import AnyBatch


class RuleError(FunnelError, ValueError):
    """A rule that names nothing; the message says what is wrong with it."""


class _All(Container[EntryId]):
    def __contains__(self, _: object) -> bool:
        return True


ALL = _All()


@dataclass(frozen=True)
class Rule:
    """Examples that are skipped: those of some entries, of a source in some time, or of all batches
    after a version."""

    entries: tuple[str, ...] = ()
    """Ids of entries of the log."""
    source: str = ""
    """Field ``source`` of entries: ``http``, the name that a producer gives, or nothing for any."""
    since: int = 0
    until: int = 0
    """Unix milliseconds between which the log has got the entries; 0 and 0 for no time."""
    version: int = 0
    """Version to go back to; 0 for none."""
    cut: int = 0
    """Number of the last cut that had it, once that is known."""

    def __post_init__(self) -> None:
        for text in self.entries:
            try:
                EntryId.parse(text)
            except ValueError as error:
                raise RuleError(
                    f"{text!r} is no id of an entry, such as 1767225600000-0"
                ) from error
        kinds = (bool(self.entries), self.until > self.since, self.version > 0)
        if sum(kinds) != 1 or (self.source and not kinds[1]):
            raise RuleError("give ids of entries, or a time with an end after its begin")

    @classmethod
    def of(cls, order: Rebuild) -> "Rule":
        """Return the rule of a command."""
        found: dict[str, Any] = orjson.loads(order.rule)
        return cls(**found | {"entries": tuple(found["entries"])})

    def to_json(self) -> str:
        """Return the text that a command carries."""
        return orjson.dumps(asdict(self)).decode()

    @property
    def first(self) -> EntryId:
        """The lowest id that an entry which it names can have; of a version, the highest of all."""
        if self.entries:
            return min(map(EntryId.parse, self.entries))
        return TOP if self.version else EntryId(self.since, 0)

    def names(self, entry: EntryId, fields: Fields) -> bool:
        """Return whether it names an entry of the log."""
        if self.entries:
            return str(entry) in self.entries
        is_meant = (
            not self.source or fields.get(SOURCE, b"").decode(errors="replace") == self.source
        )
        return is_meant and self.since <= entry.milliseconds < self.until


@dataclass
class RuledSkips:
    """The examples that the rule of a new command skips, and those of earlier ones."""

    rules: Sequence[tuple[int, Rule]]
    """Each with the number of the cut that carries it."""
    is_dry: bool
    found: dict[int, set[EntryId]] = field(default_factory=dict)
    """Entries that rules name, by the number of the cut."""
    examples: int = 0
    batches: int = 0
    """Examples that are skipped, and batches that they were in."""

    def note(self, entry: EntryId, fields: Fields) -> None:
        """Look at an entry that was read."""
        for number, rule in self.rules:
            if not rule.version and rule.names(entry, fields):
                self.found.setdefault(number, set()).add(entry)

    def of(self, number: int) -> Container[EntryId]:
        """Return the entries whose examples a cut is without."""
        later = [(own, rule) for own, rule in self.rules if own > number]
        if any(rule.version and number > rule.cut for _, rule in later):
            return ALL
        return set().union(*(self.found.get(own, ()) for own, _ in later))

    def counted(self, batch: AnyBatch | None, examples: int) -> None:
        """Count the batch of a cut that had so many examples."""
        left = 0 if batch is None else len(batch)
        self.examples += examples - left
        self.batches += left < examples


def rules_of(commands: Sequence[Ordered]) -> list[tuple[int, Rule]]:
    """Return the rules that some commands carry, each with the number of its cut."""
    return [(own.cut, Rule.of(own.order)) for own in commands if isinstance(own.order, Rebuild)]
