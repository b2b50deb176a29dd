"""What happens in one run: it is drawn from a seed, and can be made smaller."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

FAULTS = (
    "kill", "crash", "crash", "step", "restart", "power", "power", "suspend", "sleep", "partition",
    "hold", "loss", "late", "server restart", "full memory", "read only", "full disk",
    "broken disk", "rot", "server clock", "clock", "checkpoint", "tune", "slow",
)  # fmt: skip
FOREIGN_FAULTS = ("trim", "delete", "lose", "flush", "top")
"""What other programs with access to the server may do: acknowledged examples are lost by it."""
COMMANDS = (
    "extent", "take_epoch", "read", "append_cuts", "append_cuts", "append_cuts", "record_skipped",
    "forget_skipped", "cuts_after", "trim", "take_lease", "append", "append", "release_lease",
)  # fmt: skip
DISK_OPERATIONS = ("create", "write", "fsync", "rename", "fsync folder", "remove", "list", "read")
KINDS = ("plain",) * 15 + ("foreign",) * 3 + ("everysec",) * 2
OPEN = 4
"""One plain schedule in so many leaves it to the first examples what the model learns."""
KINDS_SENT = (
    ("features",), ("rows",), ("features:numbers",), ("rows:numbers",), ("features", "rows"),
    ("features", "features:numbers"), ("rows", "rows:numbers"), ("features:numbers", "rows"),
    ("features", "features:numbers", "rows", "rows:numbers"),
)  # fmt: skip
"""The kinds of examples that clients of an open model send, each time by turns."""
REAL_EVERY = 50
"""One schedule in so many learns with a real state. Every other of them learns named rows, and half
of the rest learn numbers."""

RULES = {0: "sum", 2: "weighted"}
"""What decides on labels, by the remainder of the seed after division by four."""


@dataclass(frozen=True)
class Fault:
    """One fault."""

    at: float
    """Simulated seconds since the beginning."""
    kind: str
    process: int
    seconds: float
    """How long it lasts."""
    what: str = ""
    """A command or an operation of the disk."""
    when: str = "before"
    count: int = 1

    def __str__(self) -> str:
        detail = f" {self.when} {self.what} ({self.count})" if self.what else ""
        return (
            f"{self.at:7.3f} s  {self.kind}{detail}, process {self.process}, {self.seconds:.3f} s"
        )


@dataclass(frozen=True)
class Labelling:
    """Questions whose labels come later."""

    questions: int
    """Requests that ask."""
    ttl: str
    grace: str
    timeout: str
    """Settings, as they are given."""
    keeps: str
    """Which of two labels of a question counts."""
    join_bytes: str

    @classmethod
    def of(cls, rng: random.Random, rule: str = "") -> "Labelling":
        """Draw one.

        Args:
            rng: draws.
            rule: ``sum`` or ``weighted`` if labels are added up, or correct what was assumed.
        """
        one = cls(
            rng.randint(3, 30),
            rng.choice(("1h", "1h", "1h", "4s")),
            rng.choice(("60s", "60s", "1s", "0s")),
            rng.choice(("", "", "", "2s:1")),
            rng.choice(("first", "first", "last")),
            rng.choice(("256MB", "256MB", "256MB", "1kB")),
        )
        if rule == "sum":
            timeout = rng.choice(("", "2s:1"))
            return replace(one, keeps="sum", ttl=one.ttl if timeout else "4s", timeout=timeout)
        if rule == "weighted":
            return replace(one, keeps="first", timeout="weighted:1")
        return one

    @property
    def keeps_all(self) -> bool:
        """Whether no question is closed."""
        return (self.ttl, self.join_bytes) == ("1h", "256MB")

    @property
    def is_patient(self) -> bool:
        """Whether no question is closed, and none gets a label that nobody has sent."""
        return self.keeps_all and not self.timeout

    @property
    def is_weighted(self) -> bool:
        """Whether questions are learned at once, before their labels."""
        return self.timeout.startswith("weighted:")

    @property
    def ends_waits(self) -> bool:
        """Whether something is learned when the time of a question is over."""
        return bool(self.timeout) or self.keeps == "sum"


@dataclass(frozen=True)
class Plan:
    """What happens in one run."""

    seed: int
    kind: str
    """``plain``; ``foreign``: other programs damage the log; ``everysec``: so does a power cut."""
    is_real: bool
    """Whether a real state learns."""
    machines: tuple[int, ...]
    """Where each process runs."""
    locks: bool
    """Whether the file system has locks."""
    is_embedded: bool
    """Whether the log's server runs on machine 0."""
    inherited: int
    """Cuts of the first version of the fold that are there at the beginning."""
    faults: tuple[Fault, ...]
    entries: int
    poison: float
    """Share of the entries that are poison."""
    loss: float
    """Probability that a request or a reply is lost."""
    late: float
    """Probability that a request is executed only after the client has given it up."""
    batch_size: int
    max_wait_ms: int
    checkpoint_every: float
    lease_seconds: float
    sends: tuple[str, ...] = ()
    """The kinds of examples that come to an open model; none if the model is not open."""
    labelling: Labelling | None = None
    """How clients ask and label; None if they do not."""
    is_stored: bool = False
    """Whether checkpoints are kept in object storage."""

    @classmethod
    def stored(cls, seed: int) -> "Plan":
        """Return the plan of a seed with checkpoints in object storage.

        Trainers on two machines lose the log for longer than a lease while they write slowly.
        """
        plan, rng = cls.of(seed), random.Random(f"{seed}/stored")
        machines = plan.machines if len(plan.machines) > 1 else (0, 1)
        faults = list(plan.faults)
        for process in rng.sample(range(len(machines)), 2):
            at, lasts = rng.uniform(0.5, plan.seconds), 2 * plan.lease_seconds
            kind = rng.choice(("partition", "suspend"))
            faults.append(Fault(at, "slow", process, lasts))
            faults.append(Fault(at + rng.uniform(0, 1), kind, process, lasts))
        faults.sort(key=lambda fault: fault.at)
        return replace(plan, is_stored=True, machines=machines, faults=tuple(faults))

    @classmethod
    def asking(cls, seed: int) -> "Plan":
        """Return a plan of a seed in which clients ask, too: of chains of dense features."""
        plan = cls.of(seed)
        rng = random.Random(f"{seed}/labelling")
        return replace(
            plan, kind="plain", is_real=False, inherited=0, sends=(),
            labelling=Labelling.of(rng, RULES.get(seed % 4, "")),
            faults=tuple(f for f in plan.faults if f.kind in FAULTS),
        )  # fmt: skip

    @classmethod
    def of(cls, seed: int) -> "Plan":
        """Return the plan of a seed."""
        rng = random.Random(seed)
        is_real = seed % REAL_EVERY == REAL_EVERY - 1
        kind = "plain" if is_real else rng.choice(KINDS)
        machines = rng.choice(((0,), (0,), (0, 0), (0, 1), (0, 1), (0, 1, 1)))
        count = rng.choice((0, 1, 1, 2, 2, 3, 4, 6))
        seconds = 1.0 + count
        faults = [_fault(rng, FAULTS, seconds, len(machines)) for _ in range(count)]
        if kind == "foreign":
            faults.append(_fault(rng, FOREIGN_FAULTS, seconds, len(machines)))
        if kind == "everysec":
            faults.append(replace(faults[0] if faults else _fault(rng, FAULTS, seconds, 1),
                                  kind="server power", at=rng.uniform(1, seconds)))  # fmt: skip
        locks, is_embedded = rng.random() < 0.7, rng.random() < 0.5
        inherited = 0 if is_real else rng.choice((0, 0, 0, 0, 0, 1, 4))
        is_open = kind == "plain" and not (is_real or inherited) and seed % OPEN == 1
        return cls(
            seed,
            kind,
            is_real,
            machines,
            locks=locks,
            is_embedded=is_embedded,
            inherited=inherited,
            faults=tuple(sorted(faults, key=lambda fault: fault.at)),
            entries=rng.randint(3, 24),
            poison=rng.choice((0.0, 0.1, 0.3)),
            loss=rng.choice((0.0, 0.0, 0.0, 0.02, 0.08)),
            late=rng.choice((0.0, 0.0, 0.0, 0.02)),
            batch_size=rng.choice((1, 4, 16)),
            max_wait_ms=rng.choice((0, 200, 2_000)),
            checkpoint_every=rng.choice((0.3, 1.0, 1.0, 3.0)),
            lease_seconds=rng.choice((1.0, 1.0, 2.0)),
            sends=random.Random(f"{seed}/sends").choice(KINDS_SENT) if is_open else (),
        )

    @property
    def is_open(self) -> bool:
        """Whether the settings leave it to the log what the model learns."""
        return bool(self.sends)

    @property
    def is_named(self) -> bool:
        """Whether the examples are rows with named columns."""
        return self.is_real and self.seed % (2 * REAL_EVERY) == 2 * REAL_EVERY - 1

    @property
    def is_numeric(self) -> bool:
        """Whether the labels are numbers."""
        if self.labelling is not None:
            return self.labelling.keeps == "sum"
        return self.is_real and not self.is_named and self.seed // REAL_EVERY % 4 == 2

    @property
    def seconds(self) -> float:
        """Simulated seconds for which entries and faults come."""
        return 1.0 + max((fault.at + fault.seconds for fault in self.faults), default=0.0)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.kind}{', real state' if self.is_real else ''}"
            f"{f', open to {self.sends}' if self.sends else ''}"
            f"{f', {self.labelling}' if self.labelling else ''}"
            f"{', object storage' if self.is_stored else ''}, processes on "
            f"machines {self.machines}, {'locks' if self.locks else 'no locks'}, "
            f"{'embedded' if self.is_embedded else 'remote'} server, {self.entries} entries, "
            f"{self.inherited} inherited cuts, loss {self.loss}, late {self.late}, batches of "
            f"{self.batch_size}, wait {self.max_wait_ms} ms, checkpoint every "
            f"{self.checkpoint_every} s, lease {self.lease_seconds} s"
        ]
        return "\n".join(lines + [f"  {fault}" for fault in self.faults])

    def smaller(self) -> Iterator["Plan"]:
        """Yield plans in which one thing less happens."""
        for k in range(len(self.faults)):
            yield replace(self, faults=self.faults[:k] + self.faults[k + 1 :])
        for change in (
            {"loss": 0.0}, {"late": 0.0}, {"poison": 0.0}, {"inherited": 0},
            {"entries": self.entries // 2}, {"entries": self.entries - 1},
            {"machines": self.machines[:-1]}, {"sends": self.sends[:-1] or self.sends},
        ):  # fmt: skip
            plan = replace(self, **change)  # type: ignore[arg-type]
            if plan != self and plan.entries and plan.machines:
                yield plan
        if (own := self.labelling) is not None:
            for fewer in {own.questions // 2, own.questions - 1} - {0, own.questions}:
                yield replace(self, labelling=replace(own, questions=fewer))


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """Return the smallest plan found that still fails."""
    while (next_plan := next(filter(fails, plan.smaller()), None)) is not None:
        plan = next_plan
    return plan


def _fault(rng: random.Random, kinds: tuple[str, ...], seconds: float, processes: int) -> Fault:
    kind = rng.choice(kinds)
    what = ""
    if kind == "crash":
        what = rng.choice(COMMANDS + DISK_OPERATIONS)
    elif kind == "hold":
        what = rng.choice(("", "append_cuts", "append_cuts", "take_lease", "trim", "append"))
    return Fault(
        rng.uniform(0.1, seconds),
        kind,
        rng.randrange(processes),
        rng.choice((0.05, 0.3, 1.0, 2.0)) * rng.uniform(0.5, 1.5),
        what,
        rng.choice(("before", "after")),
        rng.choice((1, 1, 2, 5)) if kind == "crash" else rng.randint(1, 200),
    )
