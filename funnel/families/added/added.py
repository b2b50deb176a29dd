"""A family that a user adds, as it learns."""

from collections.abc import Mapping

import torch
from torch import Tensor

from funnel.families.added.answers import Maker, Misfit, answers_of, calling, unit_of
from funnel.families.added.frozen import Frozen
from funnel.families.interface import Examples, Family, Growing
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Outcome
from funnel.pool.loss import is_far

STATE, UNIT = "state", "unit"
MOST = 1e18
"""Numbers are clamped to ±MOST, so that their squares stay finite in fp32."""
MOST_UNITS = 1_000.0
"""Own units of a family in a unit of the others beyond which its own is one of numbers that were
nearly alike."""
FIRST = 100
"""Number of the first such family, for draws."""


class Added:
    """A family of a user's. Whatever it raises on a batch, it raises again in a replay: it then
    answers as one that knows nothing, or does not learn the batch, and the others go on.

    Args:
        maker: makes it.
        number: of those that a user adds, from 0.
        features: d.
        outcome: what it answers.
    """

    def __init__(self, maker: Maker, number: int, features: int, outcome: Outcome) -> None:
        self.maker, self.number, self.features, self.outcome = maker, number, features, outcome
        self.unit = unit_of(outcome)
        self._take(self._made())
        self.names = tuple(f"{maker.name}/{name}" for name in self.family.names)

    def _made(self) -> Family:
        with calling():
            return self.maker(self.features, self.outcome)

    def _take(self, family: Family) -> None:
        self.family, self._held = family, dict(family.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        named = {f"{STATE}.{name}": tensor.detach() for name, tensor in self._held.items()}
        return named | ({UNIT: self.unit} if len(self.unit) else {})

    def answer(self, prepared: Tensor) -> Tensor:
        """Return the answers to a batch, fp32 [K, n, A]; NaN where an expert knows nothing.

        Args:
            prepared: the inputs of networks, fp32 [n, d].
        """
        try:
            return answers_of(self.family, prepared, self.outcome, self.unit)
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            self.maker.excuse(error, f"as it answered a batch of {len(prepared)}")
        return prepared.new_full((len(self.names), len(prepared), self.outcome.outputs), torch.nan)

    def learn(self, prepared: Tensor, examples: Examples) -> None:
        """Learn a batch that is kept.

        Args:
            prepared: the inputs of networks, fp32 [n, d].
            examples: the batch.
        """
        before = self._copies()
        try:
            with calling():
                labels, weights = self._labels(examples.labels), examples.weights.clone()
                draws = examples.generator(FIRST + self.number)
                self.family.learn(prepared.clone(), labels, weights, draws)
                self._check()
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            self.maker.excuse(error, f"as it learned a batch of {len(prepared)}")
            self._become(before)

    def _labels(self, labels: Tensor) -> Tensor:
        """Return labels in the family's own unit."""
        if not len(self.unit):
            return labels.clone()
        return (labels.double() * self.unit[0] + self.unit[1]).clamp_(-MOST, MOST).float()

    def _check(self) -> None:
        """Check that a step has changed tensors in place, where a checkpoint follows."""
        now = self.family.tensors()
        for name in now.keys() | self._held.keys():
            if now.get(name) is not self._held.get(name):
                raise Misfit(
                    f"replaces the tensor {name!r} as it learns, where a checkpoint cannot follow: "
                    f"change it in place, as in self.{name}.copy_(…), and return it from tensors()"
                )

    def _copies(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._held.items()}

    def _become(self, state: dict[str, Tensor]) -> None:
        """Go on with a state, in an instance that has no other."""
        self._take(self._made())
        self._load(state)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        with calling():
            for name, tensor in self._held.items():
                tensor.copy_(state[name])

    def resized(self, features: int, outcome: Outcome) -> "Added":
        """Return a family of more inputs or classes.

        It goes on if it is `Growing`, or if its own size is enough; otherwise it begins from
        nothing.

        Args:
            features: no fewer than its own.
            outcome: of no fewer classes than its own.

        Raises:
            Misfit: its experts have other names then.
        """
        larger = Added(self.maker, self.number, features, outcome)
        if larger.names != self.names:
            raise Misfit(
                f"has other names, {', '.join(larger.names)}, for {features} features and "
                f"{outcome.outputs} outputs: make names the same for every size"
            )
        larger.unit.copy_(self.unit)
        if (features, outcome.outputs) == (self.features, self.outcome.outputs):
            larger._load(self._copies())
        elif isinstance(larger.family, Growing) and isinstance(self.family, Growing):
            larger._grow(self.family)
        return larger

    def _grow(self, smaller: Growing) -> None:
        assert isinstance(self.family, Growing), "another one begins from nothing"
        try:
            with calling():
                self.family.grow(smaller)
                self._check()
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            self.maker.excuse(error, "as it grew, and begins from nothing")
            self._take(self._made())

    def frozen(self) -> Frozen:
        """Return a copy of the present."""
        return Frozen(self.maker, self.features, self.outcome, self._copies(), self.unit.clone())

    def rescale(self, ratio: Tensor, shift: Tensor) -> None:
        """Continue with numbers in another unit; the family keeps its own.

        Where numbers of the old unit say nothing about those of the new one, as wild ones and those
        that were all alike do, the family begins from nothing, in the new unit.

        Args:
            ratio: of the old unit to the new one, 0-dim.
            shift: what a number of 0 in the old unit is in the new one, 0-dim.
        """
        assert isinstance(self.outcome, Numbers), "only numbers have a unit"
        size = self.unit[0] / ratio
        if bool(is_far(ratio, shift) | (size > MOST_UNITS)):
            self._load(self._made().tensors())
            self.unit.copy_(unit_of(self.outcome))
            return
        zero = self.unit[1] - size * shift
        self.unit.copy_(torch.stack([size, zero]))
