"""The identity of a trainer: its model, and the settings with which it goes on.

A learner keeps it in the log's server next to its lease. A standby compares it with its own at its
start: what it could not take over is an error then, and not when the learner has died.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import orjson

from service.fold.spec import Spec
from service.fold.task import AUTO
from service.process import boot_name
from service.settings import INPUTS, TASK, Settings
from streams.environment import PREFIX

CHANGEABLE = (
    "batch_size", "max_wait_ms", "shadow", "lr", "gain_lr", "scale_lr", "momentum", "loss_guard",
    "class_weights", "effort", "threads", "label_ttl", "label_grace", "labels", "label_timeout",
    "join_bytes",
)  # fmt: skip
"""Settings that a trainer brings with it, and that decide bits."""
STORED = "://"
"""An address of object storage contains it, and a path does not."""
DECIDED = {"features": INPUTS, "classes": TASK, "task": TASK}
"""Fields of a spec, and the choices by which they are left to the log or not."""


@dataclass(frozen=True)
class Identity:
    """The model of a trainer, and the settings with which it goes on."""

    spec: Spec
    is_open: bool
    """True if the log may still make it another model (see `service.trainer.choice`)."""
    settings: Mapping[str, str]
    """Its values of CHANGEABLE, and what its settings declare of the schema, as texts."""
    host: str
    folder: str
    """Path of its checkpoints on that host, or their address in object storage."""
    lock: str
    """Name of the lock next to them (see `service.log.lease.Lock`)."""
    opens: Sequence[str] = (INPUTS, TASK)
    """The choices that its settings leave to the log."""

    @classmethod
    def of(cls, settings: Settings, spec: Spec, folder: str, lock: str) -> "Identity":
        """Return the identity of a trainer.

        Args:
            settings: of its service.
            spec: of its model.
            folder: path or address of its checkpoints.
            lock: name of the lock next to them.
        """
        values = settings.model_dump(include=set(CHANGEABLE))
        shown = {name: _shown(values[name]) for name in CHANGEABLE}
        if settings.declared is not None:
            declared = settings.declared.to_json()
            shown["schema"] = orjson.dumps(declared, option=orjson.OPT_SORT_KEYS).decode()
        place = platform.node(), folder, lock
        return cls(spec, bool(settings.opens), shown, *place, sorted(settings.opens))

    def to_json(self) -> str:
        """Return the text that is kept in the log's server."""
        return orjson.dumps(asdict(self) | {"spec": self.spec.fields()}).decode()

    @classmethod
    def from_json(cls, text: str) -> "Identity | None":
        """Return what another trainer published of itself; None if this version cannot read it."""
        try:
            found = orjson.loads(text)
            return cls(**found | {"spec": Spec.of(found["spec"])})
        except (ValueError, TypeError, KeyError):
            return None

    def differing(self, settings: Settings, spec: Spec) -> list[str]:
        """Return how another model differs from this one, so that it could not go on with it.

        Args:
            settings: of the other model, which follows this one where they leave a choice.
            spec: of the other model.

        Returns:
            Each difference with its setting and both values. While this one is open, only what
            neither leaves to the log counts.
        """
        if self.is_open:
            opens = {*self.opens, *settings.opens}
            return [
                _difference(name, _shown(theirs), _shown(own))
                for name, theirs, own in spec.differences(self.spec)
                if name in DECIDED and DECIDED[name] not in opens
            ]
        if settings.opens:
            spec = settings.taking(self.spec).spec
        if settings.calibrate == AUTO:
            spec = replace(spec, calibrate=self.spec.calibrate)
        return [
            _difference(name, _shown(theirs), _shown(own))
            for name, theirs, own in spec.differences(self.spec)
        ]

    def changing(self, other: "Identity") -> list[str]:
        """Return the settings that change when another trainer goes on, with both values."""
        return list(_changes(self.settings, other.settings))

    @property
    def advice(self) -> str:
        """The setting with which another trainer finds its checkpoints."""
        if STORED in self.folder:
            return f"Use the learner's --state, which keeps them in {self.folder}"
        return f"Use the folder of the learner as --data-dir, which is {self.folder} on {self.host}"

    def keeps_elsewhere(self, other: "Identity") -> bool:
        """Return whether it is known that its checkpoints are not those of another trainer.

        The locks next to them tell folders of one machine apart.
        """
        if STORED in self.folder or STORED in other.folder:
            return self.folder != other.folder
        return self.lock.startswith(f"{boot_name()}:") and self.lock != other.lock


def _changes(theirs: Mapping[str, str], own: Mapping[str, str]) -> Iterator[str]:
    for name in (*CHANGEABLE, "schema"):
        if name in theirs and name in own and theirs[name] != own[name]:
            if name == "schema":
                yield f"{PREFIX}SCHEMA declares other columns, labels or policies"
            else:
                yield _difference(name, theirs[name], own[name])


def _difference(name: str, theirs: str, own: str) -> str:
    return f"{PREFIX}{name.upper()} is {theirs or 'empty'} there and {own or 'empty'} here"


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
