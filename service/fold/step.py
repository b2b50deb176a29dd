"""The step that folds one batch into a state, and how it runs.

A step is a function of (state, batch) alone: on one machine, with one number of threads, equal
states and equal batches give equal states, bit for bit. It never reads a GPU on the host.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from funnel.compiled import loops
from funnel.families.families import Proposed
from funnel.families.interface import Examples, Given
from funnel.graphs.execution import Execution
from funnel.pool.loss import Gaussian, Pinball
from funnel.pool.pool import Decision, Scored
from funnel.pool.sparse import Inputs
from funnel.tensorlists import weighted
from service.fold.inputs import (
    Upload,
    completed,
    filled,
    given_of,
    given_of_rows,
    holds_bytes,
    labelled,
    scaled,
)
from service.fold.learner import Entries, Learner, with_entries
from service.fold.networks import BUILT_IN
from service.fold.report import Report
from service.fold.schema.encode import Encoded, encode, encode_each
from service.fold.schema.schema import Schema
from service.fold.scoring.classification import LOOPS, MOST_PENDING, UNKNOWN
from service.fold.spec import FOLD_VERSION, Hyperparameters, Size
from service.fold.standardizer import Standardizer
from service.fold.state import KEY_BITS, KEY_BUCKETS, SERVED, State
from service.fold.target import answered, restored
from streams.examples import AnyBatch
from streams.rows.rows import Rows

WORST_LOSS = -math.log(torch.finfo(torch.float32).tiny)
"""Nats that a shadow is charged for a prediction that is not finite: the least odds of fp32."""

MOST_SHOWN = 1e30
"""Largest loss of a number that is scored, so that no sum of them overflows."""


class Pending(NamedTuple):
    """A batch of classes that was answered, to be counted by `count`."""

    answers: Tensor
    """Probabilities, fp32 [n, classes]."""
    predicted: Tensor
    """int64 [n]."""
    losses: Tensor
    """Cross-entropy in nats, fp32 [n]."""
    finite: Tensor
    """True if it is scored, bool, 0-dim."""
    keep: Tensor
    """True if it is learned, bool, 0-dim."""
    calibrates: Tensor
    """True if the calibration learns it, bool, 0-dim."""


class PendingNumbers(NamedTuple):
    """A batch of numbers that was answered, to be counted by `count_numbers`; in the unit in which
    numbers are sent."""

    values: Tensor
    """Predicted numbers, [n], or quantiles, [n, Q], fp32."""
    std: Tensor | None
    """Standard deviations, fp32 [n]; None with quantiles."""
    targets: Tensor
    """fp32 [n]."""
    predicted: Tensor
    """0 for a prediction that is right (see `Outcomes`), or UNKNOWN; int64 [n]."""
    losses: Tensor
    """fp32 [n]."""
    counted: Tensor
    """True if it is scored, bool, 0-dim."""
    keep: Tensor
    """True if it is learned, bool, 0-dim."""
    floor: Tensor
    """Mean loss of the mean of numbers, 0-dim."""


class Observed(NamedTuple):
    """A batch before the update: scored and decided on by the served learner."""

    keep: Tensor
    """True if it is learned, bool, 0-dim."""
    finite: Tensor
    """True if its loss and gradient are finite, bool, 0-dim."""
    accuracy: Tensor
    """Accuracy of the predictions, 0-dim, in [0, 1]."""
    loss: Tensor
    """Mean loss (see `judged`), 0-dim."""
    floor: Tensor | Pending | PendingNumbers
    """Mean loss of the floor `majority`, or of the mean of numbers, 0-dim; or the batch, if it is
    still to be counted."""
    linear: Tensor
    """Mean loss of the pool alone, 0-dim."""
    prepared: Tensor
    """The dense inputs of the learners, fp32 [n, d]."""
    decision: Decision


class Shadowed(NamedTuple):
    """A batch before the update: scored and decided on by a shadow."""

    learns: Tensor
    """True if the shadow learns it, bool, 0-dim."""
    decision: Decision
    answers: Tensor
    """fp32 [n, A] (see `funnel.pool.loss`)."""
    labels: Tensor
    """Predicted labels, [n]."""


class Asked(NamedTuple):
    """A batch as the families beyond the pool answer it."""

    given: Given
    """Its inputs, as they take them."""
    proposed: Proposed | None
    """Their answers; None if they skip it."""


class Outcome(NamedTuple):
    """A batch that was learned or skipped; 0-dim tensors."""

    keep: Tensor
    accuracy: Tensor
    loss: Tensor
    floor: Tensor
    linear: Tensor


class Fold:
    """Executes steps on a state.

    Args:
        state: changed in place; its tensors must stay where they are.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._upload = Upload(state.device)
        self._foreseen: list[tuple[Rows, Schema, Encoded]] = []
        """Rows that come next, in their order, encoded for a schema."""
        self._started: tuple[Standardizer, int] | None = None
        """A standardizer without blank features, and the version of the state that will have it."""
        self._is_fast = False
        """True while the families beyond the pool skip the batch."""
        self._prepared_for: Hyperparameters | None = None
        self._size: Size | None = None
        self._promoted = ""
        self._prepare()

    def _prepare(self) -> None:
        """Choose how the parts of a step run; traces and captures hold hyperparameters."""
        state = self.state
        self.execution = Execution.of(state.device, state.served.is_plain)
        self._whole = Passes(state, state.learners(), self.execution)
        self._compact: dict[tuple[int, ...], Passes] = {}
        """Passes through learners that hold a part of their tables, by their pools."""
        self._learn = self.execution.whole(partial(self.learn, self._whole))
        self._without_gradients = self.execution.without_gradients()
        self._prepared_for, self._size = state.hyperparameters, state.size
        self._promoted = state.promoted

    def can_replay(self, version: int) -> bool:
        """Return whether cuts of a fold version give the bits here that they gave when learned.

        Version 2 differs from 1 in two cases: the weights of a pool of one expert were rounded, and
        a single optimizer differentiated a user's module by autograd, even one of linear layers.
        Version 3 differs from both in how it standardizes inputs, and for a user's module that
        changes them in place. Version 4 differs from 3 only in the monitor of drift, which replays
        each version as it was. Version 5 differs from 4 only in trees and neighbours.
        """
        learners = self.state.learners().values()
        writes_inputs = any(learner.writes_inputs for learner in learners)
        if version < 3 and (self.state.spec.standardize or writes_inputs):
            return False
        if version < 5 and self.state.served.families is not None:
            return False
        if version == 1:
            is_users = self.state.spec.model not in BUILT_IN
            return not any(
                len(learner.pool.experts) == 1
                and (learner.optimizer == "pool" or (is_users and learner.is_plain))
                for learner in learners
            )
        return version in (2, 3, 4, FOLD_VERSION)

    def step(self, batch: AnyBatch, is_fast: bool = False) -> Report:
        """Score the batch with the weights as they are, then take one update.

        A batch whose loss or gradient is not finite changes nothing but its count; a batch that the
        loss guard quarantines is also scored. Shadows learn what the served model learns.

        Args:
            batch: checked examples (see `streams.batch.check`), or rows that the schema takes (see
                `State.reshape`).
            is_fast: whether the families beyond the pool skip the batch. The pool answers it alone,
                and its examples wait until they remember them, from which trees catch up.
        """
        state, self._is_fast = self.state, is_fast
        is_other = state.hyperparameters is not self._prepared_for or state.size is not self._size
        if is_other or state.promoted != self._promoted:
            self._prepare()
        with self._without_gradients:
            if isinstance(batch, Rows):
                keep, accuracy, loss, floor, linear = self._learn_rows(batch)
            else:
                inputs, labels, weights = self._upload(batch)
                if state.spec.standardize and state.examples == 0:
                    state.standardizer.start(inputs)
                if state.target is not None:
                    labels = labels.float()
                    if state.examples == 0:
                        state.target.start(labels)
                keep, accuracy, loss, floor, linear = self._learn(inputs, labels, weights)
            state.version += 1
            before, state.examples = state.examples, state.examples + len(batch)
            if before // MOST_PENDING < state.examples // MOST_PENDING:
                state.settle_scores()
            if state.byte_examples is not None and holds_bytes(batch):
                state.byte_examples += len(batch)
            if self.execution.on_host:
                least = max(float(loss), 0.0)  # rounding may give less; NaN stays
                alone = math.nan if state.served.families is None else float(linear)
                found = float(accuracy), least, bool(keep), float(floor), alone
                return Report(state.version, *found)
            at_least = loss.clamp(min=0.0)
            return Report(state.version, accuracy.clone(), at_least, keep.clone(), floor.clone())

    def foresee(self, batches: Sequence[AnyBatch]) -> None:
        """Encode the batches of rows that come next together, which costs less than one by one.

        The bits of a step are the same with it and without, as a row is encoded by itself. A batch
        that the schema has grown for in the meantime is encoded again.

        Args:
            batches: in the order in which `step` will get them.
        """
        rows, schema = [batch for batch in batches if isinstance(batch, Rows)], self.state.schema
        self._foreseen = []
        if len(rows) > 1:
            found = encode_each(schema, rows)
            self._foreseen = [(own, schema, one) for own, one in zip(rows, found, strict=True)]

    def _encoded(self, rows: Rows) -> Encoded:
        while self._foreseen:
            own, schema, encoded = self._foreseen.pop(0)
            if own is rows and schema is self.state.schema:
                return encoded
        return encode(self.state.schema, rows)

    def _learn_rows(self, rows: Rows) -> Outcome:
        """Pass rows to all learners, each in tensors that hold the keys that the rows name.

        Rows with a label that the schema has no room for are not learned.
        """
        state = self.state
        encoded = self._encoded(rows)
        counts = state.missing.numpy()  # views: small operators of torch take ten times as long
        counts[:, 0] += encoded.missing
        counts[:, 1] += len(rows)
        if not len((encoded := labelled(encoded)).labels):
            nothing = torch.zeros((), device=state.device)
            return Outcome(nothing.bool(), nothing, nothing, nothing + math.nan, nothing + math.nan)
        dense = scaled(torch.from_numpy(encoded.dense).to(state.device))
        if state.spec.standardize:
            if not encoded.is_whole:
                dense = filled(dense, state.standardizer)
            if self._started != (state.standardizer, state.version):
                is_started = state.standardizer.start_blank(dense)
                self._started = (state.standardizer, state.version) if is_started else None
            if self._started is not None:
                self._started = (state.standardizer, state.version + 1)
        _count_keys(state, encoded)
        labels = torch.from_numpy(encoded.labels).to(state.device)
        if state.target is not None:
            state.target.start_blank(labels)
        weights = None
        if encoded.weights is not None:
            weights = torch.from_numpy(encoded.weights).to(state.device)
        chosen = {name: learner.choose(encoded) for name, learner in state.learners().items()}
        if (table := state.served.table) is not None and len(new := table.index.first):
            columns = encoded.columns[new]
            counts = np.bincount(columns[columns >= 0], minlength=len(state.new_keys))
            state.new_keys += torch.from_numpy(counts)
        learners = {name: one.learner for name, one in chosen.items()}
        pools = tuple(id(learner.pool) for learner in learners.values())
        if (passes := self._compact.get(pools)) is None:
            passes = self._compact[pools] = Passes(state, learners, self.execution)
        entries = {name: one.entries for name, one in chosen.items()}
        given = None
        if state.served.families is not None:
            size, (mean, scale) = state.size, self._unit()
            given = given_of_rows(encoded, size.codes, size.features, mean, scale)
        outcome = self.learn(passes, dense, labels, weights, entries, given)
        for name, learner in state.learners().items():
            learner.give_back(chosen[name])
        return outcome

    def learn(
        self,
        passes: "Passes",
        inputs: Tensor,
        labels: Tensor,
        importance: Tensor | None = None,
        entries: Mapping[str, Entries | None] | None = None,
        given: Given | None = None,
    ) -> Outcome:
        """Pass a batch to all learners.

        Args:
            passes: through the learners.
            inputs: fp32 [n, d].
            labels: [n], classes, int64, or numbers, fp32.
            importance: weights of the examples, fp32 [n]; None for 1.
            entries: the keys of rows as inputs, by learner; None for dense features.
            given: rows as the served model's families take them; None for dense features, and
                where it has none.
        """
        target, numbers = self.state.target, labels
        if target is not None:
            labels = target.scaled(numbers)
        elif self.state.hyperparameters.is_balanced:
            importance = weighted(self.state.floors.balance()[labels], importance)
        on_host, learners = self.execution.on_host, passes.learners
        of = entries or {}
        own = of.get(SERVED)
        self._seed()
        asked = self._ask(inputs, labels, importance, given)
        others = None if asked is None or asked.proposed is None else asked.proposed.answers
        sent = numbers if self.state.spec.scores_as_sent else None
        keep, finite, accuracy, loss, floor, linear, dense, decision = passes.observe(
            inputs, labels, importance, own, others, sent
        )
        if isinstance(floor, PendingNumbers):
            floor = count_numbers(self.state, learners[SERVED], floor)
        elif isinstance(floor, Pending):
            floor = count(self.state, learners[SERVED], floor, labels, importance)
        if not on_host or keep:
            learners[SERVED].update(with_entries(dense, own), labels, decision)
            if asked is not None:
                self._learn_families(asked, dense, labels, importance)
        for name, shadow in passes.shadows.items():
            self._seed()
            prepared = with_entries(dense, of.get(name))
            learns, decision, answers, predicted = shadow(
                prepared, labels, importance, keep, finite, sent
            )
            if name == self.state.promoted and (calibration := self.state.calibration) is not None:
                calibration.learn(answers, predicted, labels, finite, learns, importance)
            if not on_host or learns:
                learners[name].update(prepared, labels, decision)
        if target is not None:
            ratio, shift = target.update(numbers, keep)
            if not on_host or bool((ratio != 1.0) | (shift != 0.0)):
                for learner in learners.values():
                    learner.rescale(ratio, shift)
        return Outcome(keep, accuracy, loss, floor, linear)

    def _unit(self) -> tuple[Tensor | None, Tensor | None]:
        """Return mean and scale of the inputs as they are now; None if they stay as they come."""
        if not self.state.spec.standardize:
            return None, None
        standardizer = self.state.standardizer
        return standardizer.mean.clone(), standardizer.scale

    def _ask(
        self, inputs: Tensor, labels: Tensor, importance: Tensor | None, given: Given | None
    ) -> "Asked | None":
        """Ask the families beyond the pool for their answers, if there are any."""
        state = self.state
        families = state.served.families
        if families is None:
            return None
        given = given_of(inputs, *self._unit()) if given is None else given
        if self._is_fast:
            return Asked(given, None)
        prepared = prepared_of(state, inputs)
        return Asked(given, families.answer(prepared, given, labels, importance))

    def _learn_families(
        self, asked: "Asked", prepared: Tensor, labels: Tensor, importance: Tensor | None
    ) -> None:
        state = self.state
        assert state.served.families is not None, "they were asked"
        weights = torch.ones(len(labels)) if importance is None else importance
        examples = Examples(asked.given, labels, weights, (state.spec.seed, state.version))
        if asked.proposed is None:
            state.served.families.skip(examples)
        else:
            state.served.families.learn(prepared, examples, asked.proposed)

    def _seed(self) -> None:
        """Seed the draws of a user's module, such as dropout, by the step, so that replay repeats
        them."""
        if not self.execution.is_plain:
            torch.manual_seed((self.state.spec.seed << 40) + self.state.version)


def _count_keys(state: State, encoded: Encoded) -> None:
    """Count the keys of each column in the buckets of their hashes."""
    if not len(encoded.keys):
        return
    of_column = encoded.columns >= 0
    buckets = (encoded.keys[of_column] >> np.uint64(64 - KEY_BITS)).astype(np.int64)
    places = encoded.columns[of_column].astype(np.int64) * KEY_BUCKETS + buckets
    counted = np.bincount(places, minlength=state.buckets.numel())
    state.buckets += torch.from_numpy(counted).reshape(state.buckets.shape)


class Passes:
    """The parts of a step that score batches, for learners of one width, and how they run.

    Args:
        state: its standardizer, guard, floors and calibration.
        learners: by name, the served one first.
        execution: of the steps.
    """

    def __init__(self, state: State, learners: Mapping[str, Learner], execution: Execution) -> None:
        self.learners = dict(learners)
        served, part = learners[SERVED], execution.pass_of_model
        is_apart = execution.on_host and loops(LOOPS) is not None
        observes = partial(observe, state, served, is_apart)
        tensors = [*state.shared().values(), *served.tensors().values()]
        self.observe: Callable[..., Observed] = observes
        if not served.pool.is_fused:
            self.observe = part(observes, tensors)
        self.shadows: dict[
            str, Callable[[Inputs, Tensor, Tensor | None, Tensor, Tensor, Tensor | None], Shadowed]
        ] = {
            name: part(
                partial(observe_shadow, state, shadow),
                [*state.shared().values(), *shadow.tensors().values()],
            )
            for name, shadow in learners.items()
            if name != SERVED
        }


def observe(
    state: State,
    served: Learner,
    is_apart: bool,
    inputs: Tensor,
    labels: Tensor,
    importance: Tensor | None = None,
    entries: Entries | None = None,
    others: Tensor | None = None,
    sent: Tensor | None = None,
) -> Observed:
    """Score a batch with the served learner, decide on it; update what is shared.

    Args:
        state: its standardizer, guard, floors and calibration.
        served: the served learner, or its part for the keys that the batch touches.
        is_apart: whether the batch is left to be counted, by loops that no trace can hold.
        inputs: fp32 [n, d]; the numbers of rows may be fewer than the learner has room for.
        labels: [n], classes, int64, or standardized numbers, fp32.
        importance: weights of the examples, fp32 [n]; None for 1.
        entries: the keys of rows as inputs; None for dense features.
        others: answers of the families beyond the pool, [E, n, A]; None without.
        sent: the numbers as they were sent, fp32 [n]; None to score the labels.
    """
    prepared = prepared_of(state, inputs)
    batch = served.score(with_entries(prepared, entries), labels, importance, others)
    finite = batch.finite
    outcomes = judged(state, served, batch.scored, labels, sent)
    loss, width = outcomes.losses.mean(), state.hyperparameters.loss_guard
    keep = state.guard.judge(loss, finite, width) if width else finite
    floor: Tensor | Pending | PendingNumbers
    if state.target is None:
        is_skipped = served.families is not None and others is None
        calibrates = torch.zeros_like(keep) if is_skipped else keep  # it is of all families
        answered = (batch.scored.answers, batch.scored.labels, outcomes.losses)
        pending = Pending(*answered, finite, keep, calibrates)
        floor = pending if is_apart else count(state, served, pending, labels, importance)
    else:
        counted = _counts(state, finite)
        flags = (counted, keep)
        numbers = _answered(state, served, batch.scored, outcomes, labels, sent, *flags)
        floor = numbers if is_apart else count_numbers(state, served, numbers)
    if state.spec.standardize:
        state.standardizer.update(inputs, keep)
    decision = served.decide(batch, keep, labels)
    accuracy, linear = outcomes.correct.float().mean(), loss
    if batch.alone is not None:
        linear = judged(state, served, batch.alone, labels).losses.mean()
    return Observed(keep, finite, accuracy, loss, floor, linear, prepared, decision)


def count(
    state: State, served: Learner, batch: Pending, labels: Tensor, importance: Tensor | None = None
) -> Tensor:
    """Score a batch of classes, and let floors and calibration take it.

    Args:
        state: its floors and calibration.
        served: the served learner.
        batch: as it was answered.
        labels: int64 [n].
        importance: weights of the examples, fp32 [n]; None for 1.

    Returns:
        Mean loss of the floor `majority`, 0-dim.
    """
    answers, predicted, losses, finite, keep, calibrates = batch
    served.scores.update(answers, predicted, labels, losses, finite)
    floor = state.floors.observe(labels, finite, keep)
    if state.calibration is not None and not state.promoted:
        state.calibration.learn(answers, predicted, labels, finite, calibrates, importance)
    return floor


def prepared_of(state: State, inputs: Tensor) -> Tensor:
    """Return the dense inputs of the learners, fp32 [n, d]."""
    prepared = inputs
    if state.spec.standardize:
        prepared = state.standardizer.standardized(inputs)
    if state.spec.schema:
        prepared = completed(prepared, state.size.features)
    return prepared


class Outcomes(NamedTuple):
    """The predictions of a batch, judged; [n] each."""

    correct: Tensor
    """Which are right, bool. A number is right if the prediction is nearer to it than the mean of
    the numbers before, or than their quantiles by the pinball loss."""
    losses: Tensor
    """Losses by which the step decides, fp32: cross-entropy in nats; of numbers the absolute error,
    or the pinball loss, in the unit in which they were sent, of labels within their bounds."""
    floors: Tensor
    """Losses of that mean or these quantiles; nothing for classes."""
    shown: Tensor
    """Losses that are scored, fp32: the same, but of numbers as they were sent where these are
    scored."""


def judged(
    state: State, learner: Learner, scored: Scored, labels: Tensor, sent: Tensor | None = None
) -> Outcomes:
    """Judge the predictions of a batch.

    Args:
        state: its target.
        learner: whose loss it is.
        scored: the batch.
        labels: as it was scored.
        sent: the numbers as they were sent, fp32 [n]; None to score the labels.
    """
    if state.target is None:
        return Outcomes(scored.labels == labels, scored.losses, scored.losses[:0], scored.losses)
    loss, unit = learner.pool.loss, state.target.unit
    assert isinstance(loss, Gaussian | Pinball), "numbers have a loss of numbers"
    is_finite = torch.isfinite(scored.losses)
    mine = torch.where(is_finite, loss.distances(scored.answers, labels), math.nan)
    floor = loss.distances(loss.ignorant(learner.pool.held), labels)
    losses = shown = mine * unit[1]
    if sent is not None:
        answers = restored(scored.answers, unit, has_deviation=loss.has_deviation)
        found = loss.distances(answers, sent).clamp(max=MOST_SHOWN)
        shown = torch.where(is_finite, found, math.nan)
    return Outcomes(mine < floor, losses, floor * unit[1], shown)


def score(
    state: State,
    learner: Learner,
    scored: Scored,
    outcomes: Outcomes,
    labels: Tensor,
    keep: Tensor,
    known: Tensor | None = None,
    sent: Tensor | None = None,
) -> None:
    """Add the outcomes of a batch to a learner's scores.

    Args:
        state: its target.
        learner: one that has predicted it.
        scored: the batch.
        outcomes: as `judged` returned them, with losses that are finite where ``keep`` is True.
        labels: as it was scored.
        keep: bool, 0-dim; where it is False nothing changes.
        known: where it is False, a prediction counts as wrong; bool [n].
        sent: the numbers as they were sent, fp32 [n]; None to score the labels.
    """
    losses = outcomes.shown
    if labels.dtype == torch.int64:
        learner.scores.update(scored.answers, scored.labels, labels, losses, keep, known)
        return
    right = outcomes.correct if known is None else outcomes.correct & known
    found = outcomes._replace(correct=right)
    _score_numbers(learner, _answered(state, learner, scored, found, labels, sent, keep, keep))


def _answered(
    state: State, learner: Learner, scored: Scored, outcomes: Outcomes, labels: Tensor,
    sent: Tensor | None, counted: Tensor, keep: Tensor,
) -> PendingNumbers:  # fmt: skip
    """Return a batch of standardized numbers [n] in the unit in which they were sent."""
    assert state.target is not None, "numbers have a unit"
    unit, is_mean = state.target.unit, isinstance(learner.pool.loss, Gaussian)
    if sent is None:
        answers = restored(scored.answers, unit, has_deviation=is_mean)
        targets = restored(labels[:, None], unit, has_deviation=False)[:, 0]
    else:
        answers, targets = answered(scored.answers, unit, has_deviation=is_mean), sent
    values, std = (answers[:, 0], answers[:, 1]) if is_mean else (answers, None)
    predicted = torch.where(outcomes.correct, 0, UNKNOWN)
    flags = (counted, keep, outcomes.floors.mean())
    return PendingNumbers(values, std, targets, predicted, outcomes.shown, *flags)


def _score_numbers(learner: Learner, batch: PendingNumbers) -> None:
    one = torch.zeros_like(batch.predicted)  # the only class there is
    sure = torch.ones_like(batch.losses)[:, None]
    learner.scores.update(sure, batch.predicted, one, batch.losses, batch.counted)
    assert learner.numbers is not None, "numbers have scores"
    learner.numbers.update(batch.values, batch.std, batch.targets, batch.losses, batch.counted)


def count_numbers(state: State, served: Learner, batch: PendingNumbers) -> Tensor:
    """Score a batch of numbers, and let the floors take it.

    Args:
        state: its floors.
        served: the served learner.
        batch: as it was answered.

    Returns:
        Mean loss of the floor ``mean``, 0-dim.
    """
    _score_numbers(served, batch)
    assert state.number_floors is not None, "classes have other floors"
    learned = batch.targets
    if state.spec.bounds_floors:
        assert state.target is not None, "numbers have a unit"
        learned = state.target.bounded(learned)
    state.number_floors.observe(batch.targets, batch.counted, batch.keep, learned)
    return batch.floor


def _counts(state: State, scored: Tensor) -> Tensor:
    """Return whether the scores take a batch, bool, 0-dim: of numbers not the first one, whose
    predictions had no unit."""
    return scored if state.target is None else scored & state.target.is_known


def observe_shadow(
    state: State,
    shadow: Learner,
    prepared: Inputs,
    labels: Tensor,
    importance: Tensor | None,
    keep: Tensor,
    scored: Tensor,
    sent: Tensor | None = None,
) -> Shadowed:
    """Score a batch with a shadow, and decide on it.

    Args:
        state: its target.
        shadow: the learner.
        prepared: the inputs of the served model, fp32 [n, d]; the keys of rows are its own.
        labels: [n], as for `observe`.
        importance: weights of the examples, fp32 [n]; None for 1.
        keep: whether the served model learns the batch, bool, 0-dim.
        scored: whether the served model scores the batch. If so, the shadow is scored too, and a
            prediction that is not finite counts as wrong.
        sent: the numbers as they were sent, fp32 [n]; None to score the labels.
    """
    batch = shadow.score(prepared, labels, importance)
    learns = batch.finite & keep
    outcomes = judged(state, shadow, batch.scored, labels, sent)
    known = torch.isfinite(outcomes.losses)
    shown = outcomes.shown.nan_to_num(nan=WORST_LOSS, posinf=WORST_LOSS)
    counted = _counts(state, scored)
    found = outcomes._replace(shown=shown)
    score(state, shadow, batch.scored, found, labels, counted, known, sent)
    decision = shadow.decide(batch, learns, labels)
    return Shadowed(learns, decision, batch.scored.answers, batch.scored.labels)
