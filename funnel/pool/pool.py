"""A pool of Funnel experts: no step size to tune.

K models that differ in η, γp, γs or the inner optimizer learn from the same batches, as one model
with a leading expert dimension. Their predictions are mixed by Fixed Share (`funnel.pool.mixing`),
which follows the expert that is best now. The update is that of a single `funnel.Funnel`, with a
scale for each expert and tensor and rates for each expert; a pool of one expert is that Funnel, bit
for bit. Beyond that an expert may take several steps a batch (`funnel.pool.walk`), and may be
renewed after a shift (`funnel.pool.renewal`).

    >>> from torch import nn
    >>> pool = Pool(nn.Linear(784, 10), 784)
    >>> inputs, labels = torch.rand(100, 784), torch.zeros(100, dtype=torch.int64)
    >>> scored = pool.score(inputs, labels)
    >>> decision = pool.decide(scored, keep=torch.tensor(True))
    >>> pool.update(inputs, labels, decision)
    >>> pool.predict(inputs).shape
    torch.Size([100, 10])
"""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from funnel.compiled import loops
from funnel.graphs.execution import Execution
from funnel.inner.interface import StateLists
from funnel.pool import mixing, persistence
from funnel.pool.classes import CLOSED, Classes
from funnel.pool.clipping import NormCap
from funnel.pool.expert import GAIN_BOUNDS, Expert, for_width
from funnel.pool.fused.linear import KERNELS, Found, Fused, Parts, fits
from funnel.pool.loss import CROSS_ENTROPY, CrossEntropy, Gaussian, Held, Loss, Pinball, is_far
from funnel.pool.mixing import FixedShare
from funnel.pool.networks import Experts, with_unit
from funnel.pool.renewal import Renewal, Restart
from funnel.pool.sparse import Inputs
from funnel.pool.stacked import (
    VARIANT,
    Grouped,
    column,
    fresh_state,
    norms_of,
    rates_of,
    runs_of,
)
from funnel.pool.walk import walks_of
from funnel.telemetry import TensorTelemetry, describe_stacked
from funnel.tensorlists import stacked_mean
from funnel.update import Alignment, State, step_

BY_INPUT = ("log_gain", "velocity", "precond_ema")
"""The fields of Funnel's state that have a column for each input."""


class Scored(NamedTuple):
    """A scored batch, before anything has changed but the buffers of a module."""

    answers: Tensor
    """The mixture's answers, such as probabilities, fp32 [n, A]; always finite. See
    `funnel.pool.loss`."""
    labels: Tensor
    """Predicted labels: classes, int64 [n], or numbers, fp32 [n]."""
    losses: Tensor
    """The mixture's losses, fp32 [n], in nats; not finite if no expert is healthy."""
    expert_losses: Tensor
    """Losses of each expert and example, [K, n], in nats."""
    norms: Tensor
    """‖g‖₂ of each expert, all tensors together, [K]."""
    healthy: Tensor
    """True if an expert's losses and gradient are finite, bool [K]."""
    gradients: list[Tensor]
    """Gradients of each expert's mean loss, [K, …], one for each parameter tensor; with weights,
    they are those of Σ w ℓ / n."""
    importance: Tensor | None = None
    """Weights of the examples, fp32 [n]; None for 1."""
    ignorance: Tensor | float = math.nan
    """Losses of a model that knows nothing, [n], or [1] for all; a number where it is constant."""
    summary: Tensor | None = None
    """The argument of `funnel.pool.loss.Loss.learn`."""
    each: Tensor | None = None
    """Answers of each expert, [K, n, A]."""


class Decision(NamedTuple):
    """The effect that a batch may have on the experts."""

    factor: Tensor
    """Factor of each expert's gradients, [K]: NaN where an expert has diverged or is due for
    renewal, and for all experts if the batch changes nothing."""
    gradients: list[Tensor]
    """Capped gradients, [K, …], one for each parameter tensor."""
    importance: Tensor | None = None
    """Weights of the examples, fp32 [n]; None for 1."""


class PoolTelemetry(TypedDict):
    """The pool as a whole; device tensors."""

    weights: Tensor
    """Weights of the experts among themselves, fp32 [K], summing to 1."""
    rivals: Tensor
    """Weights among all that is mixed of the answers that are of no expert, fp32 [R]."""
    ages: Tensor
    """Batches that each expert has learned since it started, int64 [K]."""
    best: Tensor
    """Index of the expert with the largest weight, int64, 0-dim."""
    step_sizes: dict[str, Tensor]
    """Weighted mean of η s, 0-dim, by parameter."""
    log_gains: dict[str, Tensor]
    """Weighted mean of log p, of the parameter's shape, by parameter."""
    tensors: dict[str, TensorTelemetry]
    """Reports of `funnel.telemetry.describe_stacked`, by parameter."""


class Pool:
    """K experts, their Funnel and their weights, all in tensors with fixed storage.

    A batch goes through `score`, `decide` and `update`. The first two are functions of tensors
    without a host read, and can be traced together if the experts are plain (see
    `funnel.pool.networks.Experts`). On a CPU, `update` asks once whether all experts learn the
    batch. If not, and on a GPU always, it masks the experts that do not, and then restarts them.

    Args:
        module: fp32, maps [n, features] to the outputs that the loss takes, such as logits
            [n, classes]; every expert starts as it is.
        features: width of the inputs.
        experts: their hyperparameters; by default those of `funnel.pool.expert.for_width`. Experts
            with equal ``steps`` should be neighbours, and among them those with equal inner
            optimizers.
        rate: how much an example's evidence weighs (see `funnel.pool.mixing`).
        switch_rates: shares of the weight that are redistributed per example.
        loss: what the experts answer, and how they are judged.
        fuses: whether compiled steps take the batches that they can take, if they fit the experts
            (`funnel.pool.fused.linear`). They round otherwise.

    Raises:
        TypeError, ValueError: an argument is outside its range, or the module cannot be learned;
            the message names it.
    """

    def __init__(
        self,
        module: nn.Module,
        features: int,
        experts: Sequence[Expert] | None = None,
        rate: float = mixing.RATE,
        switch_rates: Sequence[float] = mixing.SWITCH_RATES,
        loss: Loss = CROSS_ENTROPY,
        fuses: bool = False,
    ) -> None:
        experts = for_width(features) if experts is None else tuple(experts)
        if not experts:
            raise ValueError("a pool needs at least one expert")
        self.models = Experts(with_unit(module, loss), len(experts), features, loss)
        self.parameters, self.buffers = self.models.stack()
        first = next(iter(self.parameters.values()))
        self.device = first.device
        self.execution = Execution.of(first.device, self.models.is_plain)
        self.loss = loss
        self.held: Held = loss.fresh(len(experts), first.device)
        """Tensors that the loss has learned."""
        self.rivals = int("last" in self.held)
        """Answers that are mixed, too, but are of no expert: that the last label comes again."""
        share = persistence.SHARE if self.rivals and isinstance(loss, CrossEntropy) else None
        self.mixing = FixedShare(
            len(experts) + self.rivals, first.device, rate, switch_rates, share
        )
        self.cap = NormCap.fresh((len(experts),), first.device)
        self.renewal = Renewal(torch.tensor([e.renews for e in experts], device=first.device))
        self.inner = Grouped(runs_of(experts))
        parameters = list(self.parameters.values())
        self.state = fresh_state(parameters)
        each = [self.inner.init_state(p, p.dtype) for p in parameters]
        self.inner_state: StateLists = {key: [own[key] for own in each] for key in each[0]}
        self.fused: Fused | None = None
        """The compiled step; None if operators alone take batches."""
        if fuses and self.models.is_plain and fits(experts, parameters, loss):
            self.fused = self._fused(experts)
        self.alignment = Alignment(
            *([torch.zeros_like(s) for s in self.state.log_scale] for _ in Alignment._fields)
        )
        """Alignment of the last step."""
        shared = chain(parameters, self.buffers.values(), *self.state, [self.cap.level])
        self.restart = Restart(list(shared), self.inner, self.inner_state)
        has_classes = self.models.is_plain and type(loss) is CrossEntropy
        self.classes = Classes(parameters[-1]) if has_classes else None
        """Which classes are open; None where all are, or there are none."""
        if self.classes is not None:  # a class that is opened later starts like the others
            blank = self.restart.blank_of(self.classes.bias)
            blank.masked_fill_(self.classes.closed(), 0.0)
        self._configure(experts)

    @property
    def is_fused(self) -> bool:
        """True if compiled steps take its batches; no trace can hold them."""
        return self.fused is not None and loops(KERNELS) is not None

    def _fused(self, experts: Sequence[Expert]) -> Fused:
        parts = Parts(
            list(self.parameters.values()), self.state, self.inner_state, self.held, self.mixing,
            self.cap, self.renewal,
        )  # fmt: skip
        return Fused(experts, parts, [(prefix, own) for prefix, _, own in self.inner.slices])

    def _configure(self, experts: tuple[Expert, ...]) -> None:
        """Take rates and walks from the experts; traces hold them as constants."""
        self.experts = experts
        parameters = list(self.parameters.values())
        self.rates = rates_of(experts, parameters)
        walks = walks_of(
            experts, self.rates.lr, parameters, self.state, self.inner_state, self.loss, self.held
        )
        self.walks = list(walks) if self.models.is_plain else []
        pulls = torch.tensor([expert.pull for expert in experts], device=self.device)
        self.pulls = pulls if any(expert.pull for expert in experts) else None
        tensors = [*self.tensors().values(), *chain.from_iterable(w.tensors() for w in self.walks)]
        self._walk = self.execution.part(partial(_walk, self), tensors)
        self._take = self.execution.part(partial(_take, self), tensors)
        if self.fused is not None:
            self.fused.configure(experts)

    def set_experts(self, experts: Sequence[Expert]) -> None:
        """Continue with other rates of the same experts.

        Raises:
            ValueError: their number, an inner optimizer, ``steps`` or ``renews`` differs.
        """
        experts = tuple(experts)
        fixed = [(e.inner, e.steps, e.renews) for e in self.experts]
        if [(e.inner, e.steps, e.renews) for e in experts] != fixed:
            raise ValueError(
                "only lr, gain_lr, scale_lr, momentum and pull of an expert can change"
            )
        self._configure(experts)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, the tensors themselves.

        A state is saved by copying them, and resumed bit for bit by copying into them.
        """
        named = {f"model.{k}": v for k, v in (self.parameters | self.buffers).items()}
        named |= {f"mixing.{k}": v for k, v in self.mixing.tensors().items()}
        named |= {f"loss.{k}": v for k, v in self.held.items()}
        named["norm_level"] = self.cap.level
        named["excess"] = self.renewal.excess
        for i, name in enumerate(self.parameters):
            own = {field: getattr(self.state, field)[i] for field in State._fields}
            own |= {f"inner.{key}": tensors[i] for key, tensors in self.inner_state.items()}
            named |= {f"optimizer.{name}.{key}": tensor for key, tensor in own.items()}
        return named

    @property
    def log_weights(self) -> Tensor:
        """Logarithms of the experts' weights among themselves, fp32 [K]."""
        if not self.rivals:
            return self.mixing.log_weights
        return self.mixing.log_weights[: -self.rivals].log_softmax(dim=0)

    def _with_rivals(self, healthy: Tensor) -> Tensor:
        """Return which answers are mixed, given which experts are healthy, bool [K]."""
        return functional.pad(healthy, (0, self.rivals), value=True) if self.rivals else healthy

    def columns(self) -> dict[str, Tensor]:
        """Return the tensors with a column for each input by name, [K or a run of it, out, in]."""
        own = {"weight": next(iter(self.parameters.values()))}
        own |= {field: getattr(self.state, field)[0] for field in BY_INPUT}
        return own | {f"inner.{key}": tensors[0] for key, tensors in self.inner_state.items()}

    def with_columns(self, columns: Mapping[str, Tensor], restart: Restart) -> "Pool":
        """Return a pool over other inputs that shares all tensors without a column for each.

        Args:
            columns: takes the place of `columns`.
            restart: for these.
        """
        other = copy.copy(self)
        first = next(iter(self.parameters))
        other.parameters = self.parameters | {first: columns["weight"]}
        by_input = {f: [columns[f], *getattr(self.state, f)[1:]] for f in BY_INPUT}
        other.state = self.state._replace(**by_input)
        other.inner_state = {
            key: [columns[f"inner.{key}"], *tensors[1:]]
            for key, tensors in self.inner_state.items()
        }
        other.restart = restart
        other._configure(self.experts)
        return other

    @torch.no_grad()
    def predict(self, inputs: Inputs) -> Tensor:
        """Return the mixture's answers, such as probabilities, fp32 [n, A], always finite.

        Args:
            inputs: fp32 [n, features], or sparse if the module is plain.
        """
        outputs = self.models.outputs(self.parameters, self.buffers, inputs)
        return predicted(self.loss, self.held, self.mixing.log_weights, outputs)

    @torch.no_grad()
    def score(self, inputs: Inputs, labels: Tensor, importance: Tensor | None = None) -> Scored:
        """Score a batch with the weights as they are, and differentiate it.

        Args:
            inputs: fp32 [n, features], or sparse if the module is plain.
            labels: [n], as the loss takes them: classes, int64, or standardized numbers, fp32.
            importance: weights of the examples, fp32 [n], finite and not below 0; None for 1. An
                example of weight 0 is scored, and nothing is learned from it.
        """
        if self.fused is not None and isinstance(inputs, Tensor):
            fused = self.fused.score(inputs, labels, importance)
            if fused is not None:
                return self._scored(self.fused, fused, importance)
        loss, held = self.loss, self.held
        found = self.models.differentiate(
            self.parameters, self.buffers, inputs, labels, importance, held
        )
        norm = norms_of(found.gradients)
        count = len(norm)
        own = found.training_losses[:count] + found.losses[:count].sum(dim=1)
        healthy = torch.isfinite(norm + own)
        mixes = self._with_rivals(healthy)
        log_weights = self.mixing.log_weights
        answers = loss.mixed(log_weights, found.answers, mixes, held)
        return Scored(
            answers,
            loss.chosen(found.outputs, answers),
            loss.mixed_losses(log_weights, found.losses, mixes, answers, held, labels),
            found.losses,
            norm,
            healthy,
            found.gradients,
            importance,
            self._ignorance(labels, answers.shape[1]),
            loss.completed(held, found.summary, answers, labels, importance),
            found.answers,
        )

    @staticmethod
    def _scored(fused: Fused, found: Found, importance: Tensor | None) -> Scored:
        return Scored(
            found.answers, found.chosen, found.mixed, found.losses, fused.norms, fused.healthy,
            fused.gradients, importance, each=found.each,
        )  # fmt: skip

    @torch.no_grad()
    def failed(self, labels: Tensor, outputs: int) -> Scored:
        """Return the scores of a batch at which the module raised: NaN, and no expert is healthy.

        Args:
            labels: [n], as for `score`.
            outputs: of the module, for each example.
        """
        loss, held, count = self.loss, self.held, len(self.experts)
        blank = torch.zeros(count, len(labels), outputs, device=self.device)
        judged = loss.judge(held, blank.mT.contiguous(), labels)
        healthy = torch.zeros(count, dtype=torch.bool, device=self.device)
        mixes = self._with_rivals(healthy)
        answers = loss.mixed(self.mixing.log_weights, judged.answers.mT, mixes, held)
        summary = loss.completed(held, judged.summary, answers, labels, None)
        losses = judged.losses.fill_(math.nan)
        return Scored(
            answers.fill_(math.nan),
            torch.zeros_like(loss.chosen(blank, answers)),
            losses[0],
            losses,
            losses.new_full((count,), math.nan),
            healthy,
            [torch.zeros_like(p) for p in self.parameters.values()],
            summary=summary,
        )

    @torch.no_grad()
    def decide(self, scored: Scored, keep: Tensor) -> Decision:
        """Update the experts' weights with a batch, and cap its gradients, in place.

        Args:
            scored: the batch.
            keep: bool, 0-dim; where it is False, or no expert is healthy, the weights stay and the
                gradients become NaN, at which `update` changes nothing.
        """
        if self.fused is not None and scored.gradients is self.fused.gradients:
            self.fused.decide(bool(keep))
            return Decision(self.fused.factor, scored.gradients, scored.importance)
        keep = keep & scored.healthy.any()
        learned = scored.healthy & keep
        if not self.renewal.is_idle:
            own = scored.expert_losses[: len(learned)]
            self.renewal.update(own, scored.ignorance, learned, scored.importance)
            learned = learned & ~self.renewal.due()
        mixes = self._with_rivals(scored.healthy)
        self.mixing.update(scored.expert_losses, mixes, keep, scored.importance)
        n = len(scored.losses) if scored.importance is None else scored.importance.sum()
        self.loss.learn(self.held, scored.summary, n, learned)
        factor = torch.where(learned, self.cap.factor(scored.norms), math.nan)
        for gradient in scored.gradients:
            gradient.mul_(column(factor, gradient))
        self.cap.update(scored.norms, learned)
        return Decision(factor, scored.gradients, scored.importance)

    @torch.no_grad()
    def update(self, inputs: Inputs, labels: Tensor, decision: Decision) -> None:
        """Learn a batch, renew the experts that are due, and restart those that have diverged.

        A renewed expert that walks learns the batch; any other starts with the next one. On a CPU
        this must not be called for a batch that is not kept.

        Args:
            inputs: fp32 [n, features], or sparse if the module is plain.
            labels: int64 [n].
            decision: as `decide` returned it.
        """
        factor, gradients, importance = decision
        if self.fused is not None and gradients is self.fused.gradients:
            if self.fused.update():
                self.alignment = self.fused.alignment
                return
            gradients = self.fused.capped()
        if self.execution.on_host and self._all_learn(inputs, labels, factor, importance):
            self.alignment = self._take(gradients)
            return
        if not self.renewal.is_idle:
            due = self.renewal.due()
            self.renewal.forget(due)
            self._start_again(due)
            factor = torch.where(due, 1.0, factor)
            gradients = [torch.where(column(due, g), 0.0, g) for g in gradients]
        learns = _walk(self, inputs, labels, factor, importance)
        last = _take(self, gradients, learns=learns)
        if len(self.experts) > 1:
            diverged = ~learns & learns.any()
            self.renewal.forget(diverged)
            self.restart.from_best(diverged, self.log_weights)
        self._pull(learns)
        if self.execution.on_host:
            self.alignment = last
        else:  # a captured step must leave it where it is
            torch._foreach_copy_(list(chain(*self.alignment)), list(chain(*last)))

    @torch.no_grad()
    def rescale(self, ratio: Tensor, shift: Tensor) -> None:
        """Let outputs, and what the loss has learned, be numbers in another unit, in place.

        Where numbers of the old unit lie beyond reach of the new one, outputs begin again at 0.

        Args:
            ratio: of the old unit to the new one, 0-dim.
            shift: what a number of 0 in the old unit is in the new one, 0-dim.

        Raises:
            TypeError: the loss is not one of numbers.
        """
        if not isinstance(self.loss, Gaussian | Pinball):
            raise TypeError("only outputs that are numbers have a unit")
        *_, weight, bias = self.parameters.values()
        far = is_far(ratio, shift)
        weight.mul_(ratio).masked_fill_(far, 0.0)
        bias.mul_(ratio).add_(shift).masked_fill_(far, 0.0)
        self.loss.rescale(self.held, ratio, shift)

    def open_classes(self, first: int, stop: int, bias: float) -> None:
        """Open classes that are closed; see `funnel.pool.classes.close_`.

        Args:
            first: the first of them.
            stop: the class after the last.
            bias: the logarithm of their prior odds, relative to the open ones.

        Raises:
            ValueError: one of them is not closed, or there is no such class.
        """
        if self.classes is None:
            raise ValueError("classes of this module cannot be closed")
        self.classes.open_(first, stop, bias)

    def _ignorance(self, labels: Tensor, answers: int) -> Tensor | float:
        """Return the losses of a model that knows nothing, where renewal asks for them."""
        if self.renewal.is_idle:
            return math.nan
        log_classes = math.log(answers) if self.classes is None else self.classes.log_count()
        return self.loss.ignorance(self.held, labels, log_classes)

    def _start_again(self, which: Tensor) -> None:
        """Set experts, bool [K], back to how all of them started; closed classes stay closed."""
        if self.classes is None:
            self.restart.from_the_start(which)
            return
        closed = self.classes.closed()
        self.restart.from_the_start(which)
        self.classes.bias.masked_fill_(closed, CLOSED)

    def _all_learn(
        self, inputs: Inputs, labels: Tensor, factor: Tensor, importance: Tensor | None
    ) -> bool:
        """Take the walks of a batch, and return whether all experts learn it; read on the host."""
        if self.walks:
            return bool(self._walk(inputs, labels, factor, importance).all())
        return not bool(factor.isnan().any())

    @torch.no_grad()
    def telemetry(self) -> PoolTelemetry:
        """Return the experts' weights, and what the step sizes of the mixture are doing.

        This call alone computes the values, which are device tensors.
        """
        weights = self.log_weights.exp()
        lr = weights.new_tensor([expert.lr for expert in self.experts])
        tensors: dict[str, TensorTelemetry] = {}
        step_sizes: dict[str, Tensor] = {}
        log_gains: dict[str, Tensor] = {}
        for i, name in enumerate(self.parameters):
            own = {field: getattr(self.state, field)[i] for field in State._fields}
            cosine, norm = self.alignment.cosine[i], self.alignment.gradient_norm[i]
            tensors[name] = describe_stacked(own, GAIN_BOUNDS, cosine, norm, weights)
            step_sizes[name] = weights @ (lr * own["log_scale"].exp().flatten())
            log_gains[name] = stacked_mean(own["log_gain"], weights)
        return {
            "weights": weights,
            "rivals": self.mixing.log_weights[len(self.experts) :].exp(),
            "ages": self.state.step[0].flatten().clone(),
            "best": weights.argmax(),
            "step_sizes": step_sizes,
            "log_gains": log_gains,
            "tensors": tensors,
        }

    def _pull(self, learned: Tensor | None = None) -> None:
        """Draw experts to the weighted mean: w_k ← w_k + pull_k (Σ v_j w_j - w_k).

        Args:
            learned: which of them learned the batch, bool [K]; None for all.
        """
        if self.pulls is None:
            return
        weights = self.log_weights.exp()
        for parameter in self.parameters.values():
            mean = stacked_mean(parameter, weights)
            if self.classes is not None and parameter is self.classes.bias:
                mean = self.classes.keep_closed(mean)
            share = column(self.pulls, parameter)
            if learned is None:
                parameter.lerp_(mean, share)
            else:  # the mean is not finite while an expert that diverged waits for its restart
                pulled = column(learned & (self.pulls > 0), parameter)
                parameter.copy_(torch.where(pulled, parameter.lerp(mean, share), parameter))


def predicted(loss: Loss, held: Held, log_weights: Tensor, outputs: Tensor) -> Tensor:
    """Return the mixture's answers, fp32 [n, A], always finite; probabilities are in [0, 1].

    Args:
        loss: what the experts answer.
        held: what the loss has learned.
        log_weights: of the experts, fp32 [K].
        outputs: of the experts, fp32 [K, n, out]; an expert does not count for an example for
            which its answer is not finite.
    """
    answers = loss.answers(held, outputs)
    healthy = torch.isfinite(answers).all(dim=-1)
    return loss.mixed(log_weights, answers, healthy, held)


def _walk(
    pool: Pool, inputs: Inputs, labels: Tensor, factor: Tensor, importance: Tensor | None
) -> Tensor:
    """Take all walks through the batch, and return which experts learn it, bool [K]."""
    learns = ~factor.isnan()
    for walk in pool.walks:
        learns[walk.own] &= walk.take(inputs, labels, factor, importance)
    return learns


def _take(pool: Pool, gradients: list[Tensor], learns: Tensor | None = None) -> Alignment:
    """Take the step of a batch.

    Args:
        pool: after `_walk`.
        gradients: one for each parameter tensor.
        learns: which experts take it, bool [K]; None for all, which are then pulled, too.
    """
    if learns is not None:
        gradients = [torch.where(column(learns, g), g, math.nan) for g in gradients]
    walked: dict[str, list[Tensor]] = {}
    for walk in pool.walks:
        walk.accept(None if learns is None else learns[walk.own])
        walked |= walk.precond()
    alignment = step_(
        list(pool.parameters.values()),
        gradients,
        pool.state,
        Grouped(pool.inner.runs, walked=walked),
        pool.inner_state,
        pool.rates,
        VARIANT._replace(skip_nonfinite=learns is not None),
    )
    if learns is None:
        pool._pull()
    return alignment
