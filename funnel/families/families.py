"""All families of experts, mixed: no model to choose.

A leading pool of linear experts (`funnel.pool.pool.Pool`) learns as it always does. A second pool
of perceptrons, trees, neighbours, frequencies and families that a user adds answer the same
batches, and one mixture weighs the experts of all. So a batch is answered and learned in three
parts: `Families.answer` asks all but the leading pool, `Families.mixed` joins its experts with
them, and `Families.learn` lets them learn the batch, if it is kept.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from funnel.families.added.added import Added
from funnel.families.added.frozen import Frozen as FrozenAdded
from funnel.families.added.frozen import Instances
from funnel.families.ensemble import FREQUENCIES, Answered, Ensemble
from funnel.families.ensemble import Frozen as FrozenEnsemble
from funnel.families.interface import Examples, Given
from funnel.families.linear import second_order
from funnel.families.linear.second_order import SecondOrder
from funnel.families.mixture import Mixed, Mixture, Weights
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Classes
from funnel.graphs.execution import Execution
from funnel.pool.growth import grown
from funnel.pool.loss import is_far
from funnel.pool.networks import Experts
from funnel.pool.pool import Pool, Scored

LINEAR, PERCEPTRON, ADDED, SECOND = "linear", "mlp", "added", "second"


class Proposed(NamedTuple):
    """The answers of all families but the leading pool to a batch."""

    answers: Tensor
    """fp32 [E, n, A], finite."""
    scored: Scored | None
    """The batch as the perceptrons score it; None without them."""
    answered: Answered
    """The answers of trees, neighbours and frequencies."""


class Frozen(NamedTuple):
    """All that answering needs, at one version; nothing changes it."""

    leading: int
    """Number of experts of the leading pool."""
    perceptrons: dict[str, Tensor]
    """Their parameters."""
    ensemble: FrozenEnsemble
    """Trees, neighbours and frequencies."""
    weights: Weights
    """The weights of the mixture."""
    held: dict[str, Tensor]
    """Tensors that the loss of the perceptrons has learned."""
    added: tuple[FrozenAdded, ...] = ()
    """The families that a user adds."""
    second: tuple[Tensor, Tensor] | None = None
    """Weights of the linear experts of second order, and which classes there are; None without
    them."""

    def answers(
        self,
        networks: Experts | None,
        instances: Instances,
        linear: Tensor,
        own: Tensor,
        prepared: Tensor,
        given: Given,
    ) -> Tensor:
        """Return the mixture's answers, fp32 [n, A]; a number has a standard deviation, too.

        A family that a user adds may raise anything.

        Args:
            networks: computes the perceptrons, if there are any; for one thread.
            instances: compute the families that a user adds; for one thread.
            linear: answers of the leading pool's experts, [K, n, .].
            own: of the leading pool itself, [n, .].
            prepared: the inputs of networks, fp32 [n, d].
            given: the inputs of the others.
        """
        outcome, answered = self.ensemble.remembered.outcome, self.ensemble.answers(given)
        each = [outcome.of_pool(linear[: self.leading], own)]
        if self.second is not None:
            each.append(second_order.answers(*self.second, prepared))
        if networks is not None:
            outputs = networks.outputs(self.perceptrons, {}, prepared)
            perceptrons = networks.loss.answers(self.held, outputs)[: networks.count]
            each.append(perceptrons[..., : outcome.outputs])
        added = [instances.answers(one, prepared) for one in self.added]
        known = outcome.known(torch.cat([*each, answered.answers, *added]))
        answers = self.weights.mix(known, outcome).answers
        return outcome.shown(answers, self.weights.held)


class Families:
    """Perceptrons, trees, neighbours, frequencies, and the mixture of them with a leading pool.

    Args:
        leading: number of experts of the leading pool.
        perceptrons: a pool of them; None for none.
        ensemble: the other families, of the same outcome.
        added: families that a user adds, of the same outcome.
        are_parts: whether each family that looks at inputs is a part of the mixture; of classes.
        second: linear experts of second order; None for none.
    """

    def __init__(
        self,
        leading: int,
        perceptrons: Pool | None,
        ensemble: Ensemble,
        added: Sequence[Added] = (),
        are_parts: bool = False,
        second: SecondOrder | None = None,
    ) -> None:
        self.leading, self.perceptrons, self.ensemble = leading, perceptrons, ensemble
        self.added, self.are_parts, self.second = tuple(added), are_parts, second
        outcome = ensemble.outcome
        own = leading if outcome.pools else None
        parts = self._parts() if are_parts else None
        self.mixture = Mixture(len(self.names), outcome, own, parts)
        self.skipped, self.learned = torch.zeros(2, dtype=torch.int64)
        """Batches that they have skipped and learned."""
        self._score = None
        if perceptrons is not None:
            tensors = perceptrons.tensors().values()
            self._score = perceptrons.execution.part(perceptrons.score, tensors)
        self._learn_second = None
        if second is not None:
            execution = Execution.of(outcome.device, is_plain=True)
            self._learn_second = execution.part(second.learn, second.tensors().values())

    @property
    def errors(self) -> dict[str, int]:
        """How often each family that a user adds has raised in this process, by name."""
        return {one.maker.name: one.maker.errors for one in self.added}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all experts, family first, those of the leading pool before the others."""
        linear = (f"{LINEAR}/{k}" for k in range(self.leading))
        pools = (f"{LINEAR}/pool",)[: self.ensemble.outcome.pools]
        count = 0 if self.perceptrons is None else len(self.perceptrons.experts)
        own = (f"{PERCEPTRON}/{k}" for k in range(count))
        added = (name for one in self.added for name in one.names)
        second = () if self.second is None else second_order.NAMES
        return (*linear, *pools, *second, *own, *self.ensemble.names, *added)

    def _parts(self) -> list[slice]:
        """Return which experts each family has; frequencies look at no inputs, and are no part."""
        found, begin = list[slice](), 0
        for family, names in groupby(self.names, lambda name: name.partition("/")[0]):
            end = begin + len(list(names))
            if family != FREQUENCIES:
                found.append(slice(begin, end))
            begin = end
        return found

    @property
    def has_learned(self) -> bool:
        """True once a batch was learned, not only remembered: before, only the leading pool knows
        anything, so it answers alone."""
        return bool(self.learned)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, the tensors themselves."""
        parts = {"ensemble": self.ensemble.tensors(), "mixture": self.mixture.tensors()}
        if self.perceptrons is not None:
            parts[PERCEPTRON] = self.perceptrons.tensors()
        if self.second is not None:
            parts[SECOND] = self.second.tensors()
        parts |= {f"{ADDED}.{one.maker.name}": one.tensors() for one in self.added}
        named = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.items()}
        return named | {"skipped": self.skipped, "learned": self.learned}

    def answer(
        self, prepared: Tensor, given: Given, labels: Tensor, importance: Tensor | None
    ) -> Proposed:
        """Return the answers of all but the leading pool, before the batch is learned.

        The examples of batches that were skipped are remembered first.

        Args:
            prepared: the inputs of networks, fp32 [n, features].
            given: the inputs of the others.
            labels: [n].
            importance: weights of the examples, fp32 [n]; None for 1.
        """
        scored, outcome = None, self.ensemble.outcome
        found = list[Tensor]()
        if self.second is not None:
            found.append(self.second.answers(prepared))
        if self.perceptrons is not None and self._score is not None:
            scored = self._score(prepared, labels, importance)
            assert scored.each is not None, "a scored batch has the answers of each expert"
            found.append(scored.each[: len(self.perceptrons.experts), :, : outcome.outputs])
        self.ensemble.catch_up(given.scaling)
        answered = self.ensemble.answers(given)
        added = [one.answer(prepared) for one in self.added]
        known = outcome.known(torch.cat([*found, answered.answers, *added]))
        return Proposed(known, scored, answered)

    def mixed(self, linear: Tensor, own: Tensor, answers: Tensor) -> tuple[Mixed, Tensor]:
        """Return the mixture's answers, and the answers of all experts, [K, n, A].

        It is a function of tensors without a host read.

        Args:
            linear: answers of the leading pool's experts, [K, n, .].
            own: of the leading pool itself, [n, .].
            answers: of the others, as `answer` proposed them.
        """
        outcome = self.ensemble.outcome
        first = outcome.of_pool(linear[: self.leading], own)
        each = torch.cat([outcome.known(first), answers])
        return self.mixture.weights.mix(each, outcome), each

    def learn(self, prepared: Tensor, examples: Examples, proposed: Proposed) -> None:
        """Learn a batch that is kept, in all families but the leading pool.

        Args:
            prepared: the inputs of networks, fp32 [n, features].
            examples: the batch.
            proposed: as `answer` returned it.
        """
        keep = torch.ones((), dtype=torch.bool, device=prepared.device)
        if self.perceptrons is not None and proposed.scored is not None:
            decision = self.perceptrons.decide(proposed.scored, keep)
            self.perceptrons.update(prepared, examples.labels, decision)
        if self._learn_second is not None:
            self._learn_second(prepared, examples.labels, examples.weights)
        self.ensemble.learn(examples, proposed.answered)
        for one in self.added:
            one.learn(prepared, examples)
        self.learned.add_(1)

    def skip(self, examples: Examples) -> None:
        """Let a batch that is kept wait, and learn it later as far as memory goes.

        Neighbours and frequencies know it once the next batch is learned, or 1,024 examples wait.
        Trees catch up with the next batch that they learn; perceptrons, families that a user adds
        and the mixture never see it.
        """
        self.ensemble.skip(examples)
        self.skipped.add_(1)

    def resized(
        self, perceptron: nn.Module, features: int, ensemble: Ensemble, opened: int, bias: float
    ) -> "Families":
        """Return families of more inputs or classes that go on.

        Args:
            perceptron: a module of the new size; its classes that have no example are closed.
            features: width of its inputs.
            ensemble: of the new size.
            opened: number of classes that are open.
            bias: logarithm of the odds of a class that opens.
        """
        pool = None
        if self.perceptrons is not None:
            pool = grown(self.perceptrons, perceptron, features)
            if pool.classes is not None and (first := int((~pool.classes.closed()).sum())) < opened:
                pool.open_classes(first, opened, bias)
        added = [one.resized(features, ensemble.outcome) for one in self.added]
        second = self.second
        if second is not None and isinstance(ensemble.outcome, Classes):
            second = second.resized(features, ensemble.outcome.is_open, bias)
        larger = Families(self.leading, pool, ensemble, added, self.are_parts, second)
        for name, mine in self.mixture.tensors().items():
            larger.mixture.tensors()[name][tuple(map(slice, mine.shape))] = mine
        larger.skipped.copy_(self.skipped)
        larger.learned.copy_(self.learned)
        return larger

    def frozen(self) -> Frozen:
        """Return a copy of the present."""
        pool = self.perceptrons
        return Frozen(
            self.leading,
            {} if pool is None else {name: one.clone() for name, one in pool.parameters.items()},
            self.ensemble.frozen(),
            self.mixture.weights.copy(),
            {} if pool is None else {name: one.clone() for name, one in pool.held.items()},
            tuple(one.frozen() for one in self.added),
            None if self.second is None else (self.second.weights.clone(), self.second.is_open),
        )

    def rescale(self, ratio: Tensor, shift: Tensor) -> None:
        """Continue with numbers in another unit, in which all answers stay what they are.

        Where numbers of the old unit lie beyond reach of the new one, they have been wild, and so
        is all that was learned from them: trees, neighbours and the mixture are blank again.

        Args:
            ratio: of the old unit to the new one, 0-dim.
            shift: what a number of 0 in the old unit is in the new one, 0-dim.
        """
        outcome = self.ensemble.outcome
        assert isinstance(outcome, Numbers), "only numbers have a unit"
        if self.perceptrons is not None:
            self.perceptrons.rescale(ratio, shift)
        for one in self.added:
            one.rescale(ratio, shift)
        if outcome.follows_jumps and bool(is_far(ratio, shift)):
            self.ensemble.forget()
            self.mixture.forget()
            self.learned.zero_()
            return
        self.ensemble.rescale(ratio, shift)
        outcome.rescale(self.mixture.held, ratio)
