"""All families of experts, mixed: no model to choose.

A leading pool of linear experts (`funnel.pool.pool.Pool`) learns as it always does. A second pool
of perceptrons, trees, neighbours and frequencies answer the same batches, and one mixture weighs
the experts of all. So a batch is answered and learned in three parts: `Families.answer` asks all
but the leading pool, `Families.mixed` joins its experts with them, and `Families.learn` lets them
learn the batch, if it is kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from funnel.families.ensemble import Answered, Ensemble
from funnel.families.ensemble import Frozen as FrozenEnsemble
from funnel.families.interface import Examples, Given
from funnel.families.mixture import Mixed, Mixture, Weights
from funnel.pool.growth import grown
from funnel.pool.loss import CROSS_ENTROPY
from funnel.pool.networks import Experts
from funnel.pool.pool import Pool, Scored

LINEAR, PERCEPTRON = "linear", "mlp"


class Proposed(NamedTuple):
    """The answers of all families but the leading pool to a batch."""

    probabilities: Tensor
    """fp32 [E, n, C], finite."""
    scored: Scored
    """The batch as the perceptrons score it."""
    answered: Answered
    """The answers of trees, neighbours and frequencies."""


class Frozen(NamedTuple):
    """All that answering needs, at one version; nothing changes it."""

    perceptrons: dict[str, Tensor]
    """Their parameters."""
    ensemble: FrozenEnsemble
    """Trees, neighbours and frequencies."""
    weights: Weights
    """The weights of the mixture."""
    is_open: Tensor
    """Which classes there are, bool [C]."""

    def answers(self, networks: Experts, linear: Tensor, prepared: Tensor, given: Given) -> Tensor:
        """Return the mixture's probabilities, fp32 [n, C].

        Args:
            networks: computes the perceptrons; for one thread.
            linear: probabilities of the leading pool's experts, [K, n, C].
            prepared: the inputs of networks, fp32 [n, d].
            given: the inputs of the others.
        """
        outputs = networks.outputs(self.perceptrons, {}, prepared)
        own = CROSS_ENTROPY.answers({}, outputs)
        others = self.ensemble.answers(given).probabilities
        each = known(torch.cat([linear, own, others]), self.is_open)
        return self.weights.mix(each, self.is_open).answers


class Families:
    """Perceptrons, trees, neighbours, frequencies, and the mixture of them with a leading pool.

    Args:
        leading: number of experts of the leading pool.
        perceptrons: a pool of them, with C outputs.
        ensemble: the other families, of C classes.
    """

    def __init__(self, leading: int, perceptrons: Pool, ensemble: Ensemble) -> None:
        self.leading, self.perceptrons, self.ensemble = leading, perceptrons, ensemble
        own = len(perceptrons.experts)
        self.mixture = Mixture(leading + own + len(ensemble.names), ensemble.is_open.device)
        self.skipped = torch.zeros((), dtype=torch.int64)
        """Batches that they have skipped."""
        self._score = perceptrons.execution.part(perceptrons.score, perceptrons.tensors().values())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all experts, family first, those of the leading pool before the others."""
        linear = (f"{LINEAR}/{k}" for k in range(self.leading))
        own = (f"{PERCEPTRON}/{k}" for k in range(len(self.perceptrons.experts)))
        return (*linear, *own, *self.ensemble.names)

    @property
    def has_learned(self) -> bool:
        """True once a batch was learned, not only remembered: before, only the leading pool knows
        anything, so it answers alone."""
        return self.ensemble.trees.forests["memory"].grown > 0

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, the tensors themselves."""
        parts = {
            PERCEPTRON: self.perceptrons.tensors(),
            "ensemble": self.ensemble.tensors(),
            "mixture": self.mixture.tensors(),
        }
        named = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.items()}
        return named | {"skipped": self.skipped}

    def answer(
        self, prepared: Tensor, given: Given, labels: Tensor, importance: Tensor | None
    ) -> Proposed:
        """Return the answers of all but the leading pool, before the batch is learned.

        Args:
            prepared: the inputs of networks, fp32 [n, features].
            given: the inputs of the others.
            labels: int64 [n].
            importance: weights of the examples, fp32 [n]; None for 1.
        """
        scored = self._score(prepared, labels, importance)
        answered = self.ensemble.answers(given)
        assert scored.each is not None, "a scored batch has the answers of each expert"
        found = torch.cat([scored.each, answered.probabilities])
        return Proposed(known(found, self.ensemble.is_open), scored, answered)

    def mixed(self, linear: Tensor, probabilities: Tensor) -> tuple[Mixed, Tensor]:
        """Return the mixture's answers, and the probabilities of all experts, [K, n, C].

        It is a function of tensors without a host read.

        Args:
            linear: probabilities of the leading pool's experts.
            probabilities: of the others, as `answer` proposed them.
        """
        is_open = self.ensemble.is_open
        each = torch.cat([known(linear, is_open), probabilities])
        return self.mixture.weights.mix(each, is_open), each

    def learn(self, prepared: Tensor, examples: Examples, proposed: Proposed) -> None:
        """Learn a batch that is kept, in all families but the leading pool.

        Args:
            prepared: the inputs of networks, fp32 [n, features].
            examples: the batch.
            proposed: as `answer` returned it.
        """
        keep = torch.ones((), dtype=torch.bool, device=prepared.device)
        decision = self.perceptrons.decide(proposed.scored, keep)
        self.perceptrons.update(prepared, examples.labels, decision)
        self.ensemble.learn(examples, proposed.answered)

    def skip(self, examples: Examples) -> None:
        """Remember a batch that is kept, and learn it later as far as memory goes.

        Neighbours and frequencies know it at once. Trees catch up with the next batch that they
        learn; perceptrons and the mixture never see it.
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
        pool = grown(self.perceptrons, perceptron, features)
        if pool.classes is not None and (first := int((~pool.classes.closed()).sum())) < opened:
            pool.open_classes(first, opened, bias)
        larger = Families(self.leading, pool, ensemble)
        for name, tensor in larger.mixture.tensors().items():
            tensor.copy_(self.mixture.tensors()[name])
        larger.skipped.copy_(self.skipped)
        return larger

    def frozen(self) -> Frozen:
        """Return a copy of the present."""
        return Frozen(
            {name: tensor.clone() for name, tensor in self.perceptrons.parameters.items()},
            self.ensemble.frozen(),
            Weights(*(tensor.clone() for tensor in self.mixture.weights)),
            self.ensemble.is_open,
        )


def known(probabilities: Tensor, is_open: Tensor) -> Tensor:
    """Return probabilities that are finite: an expert that has diverged knows nothing.

    Args:
        probabilities: [E, n, C].
        is_open: which classes there are, bool [C].
    """
    even = is_open / is_open.sum()
    is_known = torch.isfinite(probabilities).all(dim=2, keepdim=True)
    return torch.where(is_known, probabilities, even)
