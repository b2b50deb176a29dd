"""One learner on the stream: network, optimizer and scores; served, or a shadow.

All learners see the same batches through the same standardization, and no learner sees another. A
batch goes through three methods: `Learner.score` scores and differentiates it, `Learner.decide` is
called once it is decided whether the batch is learned, and `Learner.update` learns it.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from funnel.families.added.added import Added
from funnel.families.ensemble import ALL, Ensemble, Layout
from funnel.families.families import PERCEPTRON, Families
from funnel.families.linear.second_order import MOST_INPUTS, SecondOrder
from funnel.families.mixture import Mixed
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Classes, Outcome
from funnel.pool.classes import close_
from funnel.pool.growth import grown, grown_table
from funnel.pool.loss import CROSS_ENTROPY, is_far
from funnel.pool.networks import Experts
from funnel.pool.pool import Decision, Pool, Scored, predicted
from funnel.pool.sparse import Inputs, Sparse
from funnel.pool.tables.table import Table
from service.fold import networks
from service.fold.added.factory import Factory
from service.fold.added.trial import Trial as FamilyTrial
from service.fold.optimizers import expert_name, experts_of, loss_of
from service.fold.schema.encode import Encoded
from service.fold.scoring.classification import Scores
from service.fold.scoring.regression import QuantileScores, RegressionScores, fresh_scores
from service.fold.spec import FAMILIES, Hyperparameters, Size, Spec
from service.fold.trial import Trial

logger = logging.getLogger("funnel")

Evaluate = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor]]
"""Maps the tensors of `Learner.frozen` and inputs [n, d] to labels, [n], and answers, fp32 [n, A]
(see `funnel.pool.loss`)."""
Outputs = Callable[[dict[str, Tensor], Tensor], Tensor]
"""Maps the same to the outputs of each expert, fp32 [K, n, out]."""

WEIGHTS = "mixing.log_weights"
HELD = "loss."
"""Prefix of the names of what the loss has learned, among the tensors of `Learner.frozen`."""
TINY = torch.finfo(torch.float32).tiny


class ScoredBatch(NamedTuple):
    """A batch that a learner has scored and differentiated."""

    scored: Scored
    finite: Tensor
    """True if the batch can be learned: loss and gradient are finite; bool, 0-dim."""
    buffers: list[Tensor]
    """The module's buffers as they were before the batch."""
    alone: Scored | None = None
    """As the pool alone scores it, where families answer, too."""
    mixed: Mixed | None = None
    """The answers of all families; None without."""
    each: Tensor | None = None
    """Answers of the experts of all families, [K, n, A]."""


class Listed(NamedTuple):
    """The keys of rows as sparse inputs; see `funnel.pool.sparse.Sparse`."""

    columns: Tensor
    """int64 [n, m]."""
    values: Tensor
    """fp32 [n, m]."""


Entries = Listed | Tensor
"""The keys of rows as inputs: listed, or on a GPU written out, fp32 [n, columns]."""


def with_entries(dense: Tensor, entries: Entries | None) -> Inputs:
    """Return the inputs of a learner.

    Args:
        dense: fp32 [n, d].
        entries: None without keys.
    """
    if isinstance(entries, Tensor):
        return torch.cat([dense, entries], dim=1)
    return dense if entries is None else Sparse(dense, *entries)


class Chosen(NamedTuple):
    """A learner for a batch of rows."""

    learner: "Learner"
    """With a pool over the dense inputs and the rows of its table that the batch names."""
    entries: Entries | None
    """The keys of the batch as inputs of that pool."""
    rows: Tensor | None
    """Numbers of the rows of the table."""


class Learner:
    """A pool of experts and how well it predicted. Funnel and the plain optimizers have one expert.

    Args:
        spec: that of the served model.
        optimizer: the name of its optimizer, one of `service.fold.spec.OPTIMIZERS`.
        hyperparameters: its own.
        device: where everything lives.
        size: how large its tensors are at first.

    Raises:
        service.fold.networks.ModelError: the model cannot be built.
    """

    def __init__(
        self,
        spec: Spec,
        optimizer: str,
        hyperparameters: Hyperparameters,
        device: torch.device,
        size: Size,
    ) -> None:
        self.spec, self.optimizer, self.device, self.size = spec, optimizer, device, size
        module = self._module(size.opened)
        experts = experts_of(spec, optimizer, hyperparameters, size.active)
        self.writes_inputs = False
        """True if the model is a user's module that changes its inputs in place."""
        loss = loss_of(spec)
        if spec.model not in networks.BUILT_IN:
            trial = Trial(spec, module, loss, device)
            trial.run(experts)
            self.writes_inputs = trial.writes_inputs
        fuses = spec.is_fused and optimizer in ("pool", "funnel") and not spec.schema
        self.pool = Pool(module.to(device).train(), size.features, experts, loss=loss, fuses=fuses)
        self.table: Table | None = None
        """Rows for the keys of categories and words; None without."""
        if spec.table_bits:
            self.table = Table(self.pool, spec.table_bits, size.active)
        self.families = self._fresh_families()
        """Families beyond the pool, and the mixture of all; None unless the model is ``auto``."""
        self.hyperparameters = hyperparameters
        self.expert_names = list(map(expert_name, experts)) if optimizer == "pool" else []
        """Names of the pool's experts, which keep their own rates; none of another optimizer."""
        opened, room = size.scored
        self.scores = Scores(opened, device, room)
        self.numbers: RegressionScores | QuantileScores | None = None
        """Scores of predicted numbers; None for classes."""
        if spec.predicts.is_numeric:
            self.numbers = fresh_scores(spec.predicts.quantiles or None, device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        """Batches skipped because loss or gradient was not finite."""
        self._logged: set[str] = set()

    @property
    def is_plain(self) -> bool:
        """True if a step is a function of tensors alone; with a user's module it may not be."""
        return self.pool.models.is_plain

    def set_hyperparameters(self, hyperparameters: Hyperparameters) -> None:
        """Continue with other hyperparameters; a pool's experts keep their own rates."""
        self.hyperparameters = hyperparameters
        self.pool.set_experts(
            experts_of(self.spec, self.optimizer, hyperparameters, self.size.active)
        )

    def shown_hyperparameters(self) -> dict[str, object]:
        """Return the hyperparameters of the optimizer as JSON shows them."""
        if self.optimizer == "pool":
            return {"experts": self.expert_names}
        names = ("lr", "momentum", "gain_lr", "scale_lr")
        return {name: getattr(self.pool.experts[0], name) for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, the tensors themselves."""
        named = {f"scores.{k}": v for k, v in self.scores.tensors().items()}
        if self.numbers is not None:
            named |= {f"numbers.{k}": v for k, v in self.numbers.tensors().items()}
        table = self.table.tensors() if self.table is not None else {}
        if self.families is not None:
            named |= {f"families.{k}": v for k, v in self.families.tensors().items()}
        return self.pool.tensors() | table | named | {"nonfinite": self.nonfinite}

    @property
    def _outputs(self) -> int:
        """Outputs of the module."""
        return self.spec.predicts.outputs(self.size.classes)

    def _fresh_families(self) -> Families | None:
        is_auto = self.spec.model == networks.AUTO and self.optimizer == "pool"
        if not is_auto:
            return None
        pool, chosen = None, self.spec.families or FAMILIES
        if PERCEPTRON in chosen:
            module, loss = self._perceptron().to(self.device), self.pool.loss
            loss = loss if self._is_numeric else CROSS_ENTROPY
            pool = Pool(module, self.size.features, loss=loss)
        others = tuple(name for name in ALL if name in chosen)
        ensemble = Ensemble(*self._layout(), families=others)
        added = self._fresh_added(ensemble.outcome, [name for name in chosen if ":" in name])
        second, outcome = None, ensemble.outcome
        if self._weighs_families and isinstance(outcome, Classes):
            second = SecondOrder(self.size.features, outcome.is_open)
        own = self._weighs_families, second
        return Families(len(self.pool.experts), pool, ensemble, added, *own)

    @property
    def _weighs_families(self) -> bool:
        """True if families are parts of the mixture, which on images, of many inputs, is worse."""
        return self.spec.weighs_families and self.size.features <= MOST_INPUTS

    def _fresh_added(self, outcome: Outcome, names: Sequence[str]) -> list[Added]:
        """Return the families that a user adds, each of which was tried."""
        features, grows = self.size.features, bool(self.spec.schema)
        for name in names:
            FamilyTrial(name, features, outcome, grows).run()
        made = (Factory(name, self.spec.seed) for name in names)
        return [Added(maker, k, features, outcome) for k, maker in enumerate(made)]

    @property
    def _is_numeric(self) -> bool:
        return self.spec.predicts.is_numeric

    def _layout(self) -> tuple[Layout, Outcome]:
        """Return the layout of the examples of trees and neighbours, and what these answer."""
        size = self.size
        layout = Layout(size.codes, size.features, *size.used, self.spec.compares_codes)
        if self._is_numeric:
            quick = self.spec.is_quick, self.spec.follows_jumps
            return layout, Numbers(self.spec.predicts.quantiles, self.device, *quick)
        is_open = torch.arange(max(2, size.classes), device=self.device) < max(1, size.opened)
        return layout, Classes(is_open)

    def _perceptron(self) -> nn.Module:
        """Return the network of the family ``mlp``, whose classes without a label are closed."""
        spec, size = self.spec, self.size
        outputs = self._outputs if self._is_numeric else max(2, size.classes)
        module = networks.build("mlp", size.features, outputs, spec.hidden, spec.seed)
        if self._is_numeric:
            return module
        close_(module, max(1, size.opened))
        return module

    def _module(self, opened: int) -> nn.Module:
        """Return a module of its size, whose classes from ``opened`` on are closed."""
        spec, size = self.spec, self.size
        module = networks.build(spec.model, size.features, self._outputs, spec.hidden, spec.seed)
        if opened < size.classes and spec.predicts.kind == "multiclass":
            close_(module, opened)
        return module

    def resize(self, size: Size, prior: float) -> None:
        """Continue with tensors of another size, and open the classes that have a label now.

        Args:
            size: no smaller than its own.
            prior: logarithm of the odds of a class that opens.
        """
        before, self.size = self.size, size
        if (size.features, size.classes) != (before.features, before.classes):
            module = self._module(before.classes).to(self.device).train()
            self.pool = grown(self.pool, module, size.features)
            if self.table is not None:
                self.table = grown_table(self.table, self.pool)
        if self.table is not None:
            self.table.set_active(size.active)
        if size.opened > before.opened and self.pool.classes is not None:
            self.pool.open_classes(before.opened, size.opened, prior)
        if self.families is not None and size != before:
            self._resize_families(before, prior)
        self.scores.resize(*size.scored)
        self.set_hyperparameters(self.hyperparameters)

    def _resize_families(self, before: Size, prior: float) -> None:
        assert self.families is not None, "only families are resized"
        now, self.size = self.size, replace(self.size, opened=before.opened)
        perceptron = self._perceptron().to(self.device)
        self.size = now
        ensemble = self.families.ensemble.resized(*self._layout())
        opened = max(1, now.opened)
        self.families = self.families.resized(perceptron, now.features, ensemble, opened, prior)

    def load_table(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the rows of a saved table.

        Args:
            tensors: as `tensors` returned them.

        Raises:
            ValueError: they are not those of a table like its own.
        """
        if self.table is not None:
            self.table.load(tensors)

    def choose(self, encoded: Encoded) -> "Chosen":
        """Return the learner for rows, with the part of its table that their keys name.

        It is valid until the next call.

        Args:
            encoded: the rows; keys that are new get rows in the table.
        """
        if self.table is None or not (self.table.index.used or len(encoded.keys)):
            return Chosen(self, None, None)  # numbers alone, so far
        table, n = self.table, len(encoded.labels)
        empty = torch.empty(n, self.size.features, device=self.device)
        rows, inputs = table.admit(empty, encoded.rows, encoded.keys, encoded.values)
        part = copy.copy(self)
        part.pool = table.gather(rows)
        if isinstance(inputs, Tensor):
            return Chosen(part, inputs[:, self.size.features :], rows)
        return Chosen(part, Listed(inputs.columns, inputs.values), rows)

    def give_back(self, chosen: "Chosen") -> None:
        """Take back what a learner for rows has learned."""
        if self.table is not None and chosen.rows is not None:
            self.table.scatter(chosen.rows, chosen.learner.pool)

    def score(
        self,
        prepared: Inputs,
        labels: Tensor,
        importance: Tensor | None = None,
        others: Tensor | None = None,
    ) -> ScoredBatch:
        """Score and differentiate a batch with the weights as they are.

        A user's module may hold randomness and buffers, and may raise. Whatever it raises for its
        inputs, it raises again in replay, so the batch is skipped like one that is not finite.

        Args:
            prepared: fp32 [n, d].
            labels: int64 [n].
            importance: weights of the examples, fp32 [n]; None for 1.
            others: answers of the families beyond the pool, [E, n, A]; None without.

        Raises:
            RuntimeError, MemoryError, OSError: the machine failed, not the module; another try may
                succeed.
        """
        if self.is_plain:
            batch = self._scored(self.pool.score(prepared, labels, importance), [])
            return batch if others is None else self._mixed(batch, labels, others)
        before = [buffer.clone() for buffer in self.pool.buffers.values()]
        try:
            scored = self.pool.score(prepared, labels, importance)
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            if networks.is_of_machine(error):
                for buffer, old in zip(self.pool.buffers.values(), before, strict=True):
                    buffer.copy_(old)
                raise
            self._log(error, len(labels))
            scored = self.pool.failed(labels, self._outputs)
        return self._scored(scored, before)

    @staticmethod
    def _scored(scored: Scored, buffers: list[Tensor]) -> ScoredBatch:
        finite = scored.healthy.any() & torch.isfinite(scored.losses).all()
        return ScoredBatch(scored, finite, buffers)

    def _mixed(self, batch: ScoredBatch, labels: Tensor, others: Tensor) -> ScoredBatch:
        """Return a batch with the answers of all families instead of the pool's own."""
        assert self.families is not None, "only families have others"
        scored = batch.scored
        assert scored.each is not None, "a scored batch has the answers of each expert"
        mixed, each = self.families.mixed(scored.each, scored.answers, others)
        outcome, held = self.families.ensemble.outcome, self.families.mixture.held
        answered = scored._replace(
            answers=outcome.shown(mixed.answers, held),
            labels=outcome.chosen(mixed.answers),
            losses=outcome.scored(mixed.answers, labels, held),
        )
        return batch._replace(scored=answered, alone=scored, mixed=mixed, each=each)

    def _log(self, error: BaseException, examples: int) -> None:
        """Log what the model raised; its traceback only once, as every batch may raise the same."""
        origin = networks.origin_of(error)
        logger.error(
            "the model raised on a batch of %d, which is skipped: %r", examples, error,
            exc_info=None if origin in self._logged else error,
        )  # fmt: skip
        self._logged.add(origin)

    def decide(self, batch: ScoredBatch, keep: Tensor, labels: Tensor) -> Decision:
        """Restore buffers, count the batch, weigh the families by it, and cap its gradients.

        Args:
            batch: as `score` returned it.
            labels: [n].
            keep: whether the batch is learned, bool, 0-dim. Where it is False, the gradients become
                NaN, and nothing but counters changes.
        """
        for buffer, before in zip(self.pool.buffers.values(), batch.buffers, strict=True):
            buffer.copy_(torch.where(keep, buffer, before))
        self.nonfinite.add_(~batch.finite)
        if self.families is not None and batch.mixed is not None and batch.each is not None:
            importance = batch.scored.importance
            weights = torch.ones_like(batch.scored.losses) if importance is None else importance
            self.families.mixture.learn(batch.mixed, batch.each, labels, weights, keep)
        return self.pool.decide(batch.scored, keep)

    def update(self, prepared: Inputs, labels: Tensor, decision: Decision) -> None:
        """Take one update; on a CPU this must only be called for a batch that is kept."""
        self.pool.update(prepared, labels, decision)

    def rescale(self, ratio: Tensor, shift: Tensor) -> None:
        """Continue with numbers in another unit (`funnel.pool.pool.Pool.rescale`)."""
        self.pool.rescale(ratio, shift)
        if self.table is not None and len(self.pool.parameters) == 2:
            factor = 0.0 if bool(is_far(ratio, shift)) else float(ratio)
            self.table.rows.rescale(factor)  # beyond one layer they are not of the last
        if self.families is not None:
            self.families.rescale(ratio, shift)

    def frozen(self) -> dict[str, Tensor]:
        """Return copies of what prediction needs, on the device."""
        named = self.pool.parameters | self.pool.buffers | {WEIGHTS: self.pool.mixing.log_weights}
        named |= {HELD + name: tensor for name, tensor in self.pool.held.items()}
        return {k: v.detach().clone() for k, v in named.items()}

    def network(self) -> Outputs:
        """Return a function that computes outputs from `frozen` tensors, with a module of its own.

        Call it in one thread.
        """
        pool = self.pool
        models = Experts(pool.models.unused, len(pool.experts), self.size.features, pool.loss)
        parameters, buffers = list(self.pool.parameters), list(self.pool.buffers)

        def outputs(frozen: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return models.outputs(
                {k: frozen[k] for k in parameters}, {k: frozen[k] for k in buffers}, inputs
            )

        return outputs

    def evaluator(self) -> Evaluate:
        """Return a function that predicts from `frozen` tensors, with a module of its own.

        Call it in one thread. A single expert's answers are NaN where its outputs are not finite.
        The mixture of several experts ignores experts whose answers are not finite.
        """
        count, loss, network = len(self.pool.experts), self.pool.loss, self.network()

        def evaluate(frozen: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
            outputs = network(frozen, inputs)
            held = held_of(frozen)
            if count == 1:
                answers = loss.answers(held, outputs)[0]
            else:
                answers = predicted(loss, held, frozen[WEIGHTS], outputs)
            return loss.chosen(outputs, answers), answers

        return evaluate


def held_of(frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the loss had learned, by name.

    Args:
        frozen: as `Learner.frozen` returned it.
    """
    return {k.removeprefix(HELD): v for k, v in frozen.items() if k.startswith(HELD)}
