"""The state: all that learning changes, as data. `service.fold.step` executes steps on it."""

import math
from collections.abc import Sequence
from dataclasses import replace

import orjson
import torch
from torch import Tensor
from torch.nn import functional

from funnel.pool.tables.table import VISITS, Table
from service.fold.calibration import Calibration
from service.fold.drift.monitor import PREFIX as DRIFT
from service.fold.drift.monitor import Monitor
from service.fold.learner import Learner
from service.fold.loss_guard import LossGuard
from service.fold.networks import AUTO
from service.fold.schema.changes import Change
from service.fold.schema.kinds import Kind
from service.fold.schema.schema import Schema
from service.fold.scoring.floors import Floors
from service.fold.scoring.regression import NumberFloors
from service.fold.spec import Hyperparameters, Shadow, Size, Spec
from service.fold.standardizer import Standardizer
from service.fold.target import Target
from service.log.position import Position

SERVED, ORIGINAL = "served", "original"
"""Names of the learner that answers predictions, and of the one with which a model began, once a
shadow was promoted."""
PROMOTED = "promoted"
"""Name of the tensor that holds the name of a promoted shadow, uint8; there is none without."""
NEW_KEYS, BUCKETS = "new_keys", "key_buckets"
KEY_BITS = 4
KEY_BUCKETS = 1 << KEY_BITS
"""Buckets in which the keys of a column are counted, to see whether other ones come."""
FAMILIES = "families."
"""Prefix of the names of the tensors of families."""
FLOORS = "floors."
"""Prefix of the names of the floors' tensors."""
SCHEMA = "schema"
"""Name of the tensor that holds the schema, uint8."""
UNCOUNTED = (".histogram", ".by_class")
"""How the names of counts end that earlier versions did not keep."""
UNKEPT = ("families.ensemble.compared.", "families.ensemble.waiting.", "families.learned")
"""How the names of tensors of all families begin that earlier versions did not keep."""
LEAST_FEATURES, LEAST_CLASSES = 16, 2
"""Room for dense inputs and classes of rows at first; it doubles."""
NARROW = 4
"""Least room for dense inputs where there is little; it grows by a quarter at most."""


def active_of(schema: Schema) -> int:
    """Return how many inputs of a typical row are not 0; the words of a text count as one."""
    texts = sum(column.kind is Kind.TEXT for column in schema.columns)
    return max(1, schema.width + len(schema.singles) + int(schema.pairs.shape[1]) + texts)


def size_of(schema: Schema, is_narrow: bool) -> Size:
    """Return how large the learners of rows with a schema are.

    Args:
        schema: of the rows.
        is_narrow: whether columns have room for a quarter more at most, which every step computes
            with; otherwise for as many again.
    """
    labels, codes = len(schema.labels), len(schema.singles)
    room = 0 if schema.numeric_labels else _doubled(labels, LEAST_CLASSES)
    if is_narrow:
        width, of_codes = _narrow(max(schema.width, NARROW)), _narrow(codes)
    else:
        width, of_codes = (_doubled(needed, LEAST_FEATURES) for needed in (schema.width, codes))
    return Size(width, room, active_of(schema), labels, of_codes, (codes, schema.width))


def _doubled(needed: int, least: int) -> int:
    """Return the smallest least · 2^k that is enough: shapes change seldom."""
    return least << max(0, -(-needed // least) - 1).bit_length()


def _narrow(needed: int) -> int:
    """Return the smallest m · 2^k with m up to 8 that is enough, a multiple of NARROW."""
    step = max(NARROW, 1 << max(0, needed.bit_length() - 3))
    return -(-needed // step) * step


def _as_bytes(schema: Schema) -> Tensor:
    return torch.frombuffer(bytearray(orjson.dumps(schema.to_json())), dtype=torch.uint8)


class State:
    """The learners, what they share, the floors, the drift events, and counters.

    They share the standardizer, the loss guard and the calibration.

    Args:
        spec: that of the served model.
        hyperparameters: of the served model, and which baselines shadow it.
        device: where everything lives.

    Raises:
        service.fold.networks.ModelError: the model cannot be built.
    """

    def __init__(self, spec: Spec, hyperparameters: Hyperparameters, device: torch.device) -> None:
        self.spec, self.device = spec, device
        self.schema = Schema.from_json(orjson.loads(spec.schema)) if spec.schema else Schema()
        """The schema of rows; an empty one for dense features."""
        self.size = size_of(self.schema, spec.is_narrow) if spec.schema else spec.size
        self.missing = torch.zeros(len(self.schema.columns), 2, dtype=torch.int64)
        """By column, int64 [columns, 2]: rows without a usable value, and all rows, both since the
        column was added."""
        self.new_keys = torch.zeros(len(self.schema.columns), dtype=torch.int64)
        """By column, int64 [columns]: keys that got a row of the served learner's table."""
        self.buckets = torch.zeros(len(self.schema.columns), KEY_BUCKETS, dtype=torch.int64)
        """By column, int64 [columns, KEY_BUCKETS]: keys of rows by their first bits."""
        self.served = Learner(spec, spec.optimizer, hyperparameters, device, self.size)
        """The learner with which the model began; it answers until a shadow is promoted."""
        self.shadows: dict[str, Learner] = {}
        self.promoted = ""
        """Name of the shadow that answers instead; empty if none does."""
        width = self.schema.width if spec.schema else spec.features
        self.standardizer = self._fresh_standardizer(width)
        self.guard = LossGuard(device)
        self.target = self._fresh_target()
        """The unit of the numbers that are predicted; None for classes."""
        self.number_floors: NumberFloors | None = None
        """The floors of predicted numbers; None for classes."""
        if spec.predicts.is_numeric:
            self.number_floors = NumberFloors(device, spec.predicts.quantiles or None)
        self.floors = self._fresh_floors()
        self.calibration = self._fresh_calibration()
        """None if probabilities are answered as they come."""
        self.version = 0
        """Batches folded in."""
        self.examples = 0
        """Examples folded in."""
        self.byte_examples: int | None = 0
        """Examples folded in that came in batches of uint8 features; None if the checkpoint of an
        earlier version did not say."""
        self.drift = Monitor()
        """The replica feeds it each step's report, with its log position."""
        self.set_hyperparameters(hyperparameters)

    def set_hyperparameters(self, hyperparameters: Hyperparameters) -> None:
        """Continue with other hyperparameters and baselines; a new baseline starts blank, and a
        promoted one stays."""
        self.hyperparameters = hyperparameters
        self.served.set_hyperparameters(hyperparameters)
        shadows, spec = {}, replace(self.spec, is_fused=False)
        if spec.model == AUTO:  # a shadow is one learner
            spec = replace(spec, model="logistic", hidden=(), families=())
        named = [*hyperparameters.shadow]
        if self.promoted and self.promoted not in named:
            named.append(self.promoted)
        for shadow in map(Shadow.parse, named):
            own = shadow.hyperparameters(hyperparameters)
            learner = self.shadows.get(shadow.name)
            if learner is None:
                learner = Learner(spec, shadow.optimizer, own, self.device, self.size)
            learner.set_hyperparameters(own)
            shadows[shadow.name] = learner
        self.shadows = shadows

    def promote(self, name: str) -> None:
        """Let another learner answer predictions; the one that did becomes a shadow.

        All go on learning. The loss guard and the detectors of drift go on watching the learner
        with which the model began. The calibration starts from nothing.

        Args:
            name: of a shadow, or ORIGINAL.

        Raises:
            KeyError: there is no such shadow.
        """
        if name not in (ORIGINAL, *self.shadows):
            raise KeyError(name)
        promoted = "" if name == ORIGINAL else name
        if promoted == self.promoted:
            return
        self.promoted = promoted
        self.set_hyperparameters(self.hyperparameters)
        self.calibration = self._fresh_calibration()

    @property
    def answering(self) -> Learner:
        """The learner that answers predictions."""
        return self.shadows[self.promoted] if self.promoted else self.served

    def roles(self) -> dict[str, Learner]:
        """Return all learners by their present roles, the one that answers first."""
        if not self.promoted:
            return self.learners()
        others = {name: own for name, own in self.shadows.items() if name != self.promoted}
        return {SERVED: self.answering, ORIGINAL: self.served, **others}

    def reshape(self, changes: Sequence[Change]) -> None:
        """Let the schema of rows grow, and with it whatever has a size.

        A class that appears has the logarithm of its share so far as its bias: 1 of the examples.

        Args:
            changes: of the schema.
        """
        if changes:  # scores are settled where a schema grows, which replay repeats
            self._take(self.schema.after(changes))

    def _take(self, schema: Schema) -> None:
        """Continue with a larger schema."""
        self.schema, self.size = schema, size_of(schema, self.spec.is_narrow)
        more = len(schema.columns) - len(self.missing)
        self.missing = functional.pad(self.missing, (0, 0, 0, more))
        self.new_keys = functional.pad(self.new_keys, (0, more))
        self.buckets = functional.pad(self.buckets, (0, 0, 0, more))
        if schema.width > self.standardizer.width:
            self.standardizer = self.standardizer.resized(schema.width)
        prior = -math.log(self.examples + 1)
        for learner in self.learners().values():
            learner.resize(self.size, prior)
        self.floors.resize(*self.size.scored)
        if self.calibration is not None:
            self.calibration.resize(self.size.opened, self.size.classes)

    def _make_room(self, tensors: dict[str, Tensor]) -> None:
        """Take the size of a saved state: its schema, and the rows of its tables.

        Raises:
            ValueError: the tensor of the schema holds no schema.
        """
        text = tensors[SCHEMA].numpy().tobytes()
        try:
            schema = Schema.from_json(orjson.loads(text))
        except orjson.JSONDecodeError as error:
            raise ValueError(f"the schema is not JSON: {error}") from error
        if schema != self.schema:
            self._take(schema)
        for name, learner in self.learners().items():
            start = "" if name == SERVED else f"shadow.{name}."
            own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            learner.load_table(own)

    def _counts_of_rows(self) -> dict[str, Tensor]:
        """Return the counts that states of earlier versions lack, as they begin, by name."""
        return {
            name: torch.zeros_like(tensor)
            for name, tensor in self.tensors().items()
            if name.endswith((NEW_KEYS, VISITS, BUCKETS))
        }

    def _scores_of_before(self) -> dict[str, Tensor]:
        """Return what states of earlier versions did not count, as it begins, by name."""
        floors = {FLOORS + k: v for k, v in self._fresh_floors().tensors().items()}
        return floors | {
            name: torch.zeros_like(tensor)
            for name, tensor in self.tensors().items()
            if (name.endswith(UNCOUNTED) and not name.startswith(FLOORS)) or name.startswith(UNKEPT)
        }

    def _fresh_floors(self) -> Floors:
        """Return floors that have seen no label."""
        opened, room = self.size.scored
        return Floors(opened, self.device, room)

    def _fresh_calibration(self) -> Calibration | None:
        """Return a calibration that has seen no label, if there is any."""
        if not self.spec.calibrate:
            return None
        levels = self.spec.levels
        return Calibration(self.size.opened, self.device, self.size.classes, levels)

    def begin_as(self, spec: Spec) -> None:
        """Continue as a log began, with a spec that differs in what no setting has to choose.

        Args:
            spec: with the sizes and the optimizer of its own; nothing must have been learned yet.
        """
        assert self.version == 0, "a spec is fixed for life"
        self.spec, hyperparameters = spec, self.hyperparameters
        if spec.schema:
            self.size = size_of(self.schema, spec.is_narrow)
        self.served = Learner(spec, spec.optimizer, hyperparameters, self.device, self.size)
        self.shadows = {}
        self.set_hyperparameters(hyperparameters)
        self.standardizer = self._fresh_standardizer(self.standardizer.width)
        self.target = self._fresh_target()
        self.calibration = self._fresh_calibration()

    def _fresh_standardizer(self, width: int) -> Standardizer:
        """Return a standardizer that has seen nothing."""
        return Standardizer(width, self.device, fuses=self.served.pool.fused is not None)

    def _fresh_target(self) -> Target | None:
        """Return a unit of numbers of which none has been seen; None for classes."""
        spec = self.spec
        return Target(self.device, spec.follows_jumps) if spec.predicts.is_numeric else None

    @property
    def expects_bytes(self) -> bool:
        """True if it has learned examples, and all of them with uint8 features."""
        return self.byte_examples == self.examples > 0

    @property
    def width(self) -> int:
        """Numbers that stand for a row or example in memory, about."""
        return self.spec.features or active_of(self.schema)

    def missing_counts(self) -> dict[str, int]:
        """Return the number of rows without a usable value, by column."""
        names = [column.name for column in self.schema.columns]
        return dict(zip(names, self.missing[:, 0].tolist(), strict=True))

    def missing_ratios(self) -> dict[str, float]:
        """Return the share of rows without a usable value, by column."""
        pairs = self.missing.tolist()
        names = [column.name for column in self.schema.columns]
        return {name: none / max(all_, 1) for name, (none, all_) in zip(names, pairs, strict=True)}

    def new_key_counts(self) -> dict[str, int] | None:
        """Return how many keys of each column have a row of the table; None without a table.

        Keys of crosses, and keys that share the row of another, are not among them.
        """
        if self.served.table is None:
            return None
        names = [column.name for column in self.schema.columns]
        return dict(zip(names, self.new_keys.tolist(), strict=True))

    def key_collisions(self) -> float | None:
        """Return the share of the visits of keys that met another key's slot; None without a
        table."""
        table = self.served.table
        return None if table is None else table.index.collision_ratio

    def learners(self) -> dict[str, Learner]:
        """Return all learners by the names of their tensors: SERVED is the one with which the model
        began (`roles` names them as users see them)."""
        return {SERVED: self.served, **self.shadows}

    def settle_scores(self) -> None:
        """Count the outcomes that are pending in the scores of all learners and of the floors."""
        for learner in self.learners().values():
            learner.scores.settle()
        self.floors.scores.settle()
        if self.calibration is not None:
            self.calibration.scores.settle()

    def tables(self) -> dict[str, Table]:
        """Return the tables of the learners, by the start of the names of their tensors."""
        named = {"" if k == SERVED else f"shadow.{k}.": v for k, v in self.learners().items()}
        return {start: one.table for start, one in named.items() if one.table is not None}

    def shared(self) -> dict[str, Tensor]:
        """Return the tensors that belong to no learner, by name, the tensors themselves."""
        named = {f"standardizer.{k}": v for k, v in self.standardizer.tensors().items()}
        if self.target is not None:
            named |= {f"target.{k}": v for k, v in self.target.tensors().items()}
        if self.number_floors is not None:
            named |= {f"number_floors.{k}": v for k, v in self.number_floors.tensors().items()}
        named |= {f"guard.{k}": v for k, v in self.guard.tensors().items()}
        named |= {FLOORS + k: v for k, v in self.floors.tensors().items()}
        if self.calibration is not None:
            named |= {f"calibration.{k}": v for k, v in self.calibration.tensors().items()}
        return named

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state but `drift` by name, the tensors themselves.

        With rows, the schema is among them, as the bytes of its JSON.
        """
        named = self.shared() | self.served.tensors()
        if self.promoted:
            named[PROMOTED] = torch.tensor([*self.promoted.encode()], dtype=torch.uint8)
        if self.spec.schema:
            named[SCHEMA] = _as_bytes(self.schema)
            named["missing"], named[NEW_KEYS] = self.missing, self.new_keys
            named[BUCKETS] = self.buckets
        for name, shadow in self.shadows.items():
            named |= {f"shadow.{name}.{k}": v for k, v in shadow.tensors().items()}
        return named

    @torch.no_grad()
    def load(
        self,
        tensors: dict[str, Tensor],
        version: int,
        examples: int,
        drifts: Sequence[Position] = (),
        byte_examples: int | None = None,
    ) -> None:
        """Load a saved state of the same spec and baselines.

        Args:
            tensors: those of `tensors`, and those of `drift`; copied into the tensors of this
                state, whose storage stays where it is.
            version: batches folded in.
            examples: examples folded in.
            drifts: positions of the drift events.
            byte_examples: those of them with uint8 features; None if that is not known.

        Raises:
            ValueError: names, shapes or dtypes differ; nothing is changed then.
        """
        watched = {k: v for k, v in tensors.items() if k.startswith(DRIFT)}
        tensors = {k: v for k, v in tensors.items() if k not in watched}
        named = tensors.get(PROMOTED, torch.empty(0, dtype=torch.uint8))
        if (promoted := bytes(named.tolist()).decode()) != self.promoted:
            self.promoted = promoted
            self.set_hyperparameters(self.hyperparameters)
        if SCHEMA in tensors:
            self._make_room(tensors)
            tensors = self._counts_of_rows() | tensors
        if self.spec.predicts.is_numeric and not any(name.startswith(FAMILIES) for name in tensors):
            self.served.families = None  # earlier versions learned numbers by the pool alone
        tensors = self._scores_of_before() | tensors
        mine = self.tensors()
        if mine.keys() != tensors.keys():
            raise ValueError(f"tensors differ: {sorted(mine.keys() ^ tensors.keys())[:4]}")
        for name, tensor in tensors.items():
            if mine[name].shape != tensor.shape or mine[name].dtype != tensor.dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, "
                    f"expected {mine[name].dtype} {list(mine[name].shape)}"
                )
        self.drift.load(watched, drifts)
        for name, tensor in tensors.items():
            mine[name].copy_(tensor)
        if self.served.families is not None:
            self.served.families.ensemble.loaded()
        self.version, self.examples = version, examples
        self.byte_examples = byte_examples
