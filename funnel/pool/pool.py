"""A pool of Funnel experts: no step size to tune.

K models that differ in η, γp, γs or the inner optimizer learn side by side from the same batches,
as one model with a leading expert dimension. Their predictions are mixed by Fixed Share
(`funnel.pool.mixing`), which follows the expert that is best now. The update is that of a single
`funnel.Funnel`, with a scale for each expert and tensor and rates for each expert; a pool of one
expert is that Funnel, bit for bit. Beyond that an expert may take several steps a batch
(`funnel.pool.walk`), and begin anew after a shift (`funnel.pool.renewal`).

    >>> from torch import nn
    >>> pool = Pool(nn.Linear(784, 10), 784)
    >>> inputs, labels = torch.rand(100, 784), torch.zeros(100, dtype=torch.int64)
    >>> seen = pool.observe(inputs, labels)
    >>> factor = pool.weigh(seen, keep=torch.tensor(True))
    >>> pool.step(inputs, labels, seen.gradients, factor)
    >>> pool.predict(inputs).shape
    torch.Size([100, 10])
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from funnel.graphs.traced import Traced
from funnel.inner.interface import StateLists
from funnel.pool import mixing
from funnel.pool.clipping import NormCap
from funnel.pool.expert import GAIN_BOUNDS, Expert, for_width
from funnel.pool.grouped import Grouped, runs_of
from funnel.pool.mixing import FixedShare
from funnel.pool.networks import Experts
from funnel.pool.renewal import Renewal
from funnel.pool.restart import Restart
from funnel.pool.stacked import VARIANT, column, fresh_state, rates_of
from funnel.pool.walk import norms_of, walks_of
from funnel.telemetry import TensorTelemetry, describe_stacked, mean_over_experts
from funnel.update import Alignment, State, step_


class Observation(NamedTuple):
    """What a batch gives before anything has changed, but for the buffers of a module."""

    probabilities: Tensor
    """Of the mixture, fp32 [n, classes]; always finite."""
    losses: Tensor
    """Of the mixture, fp32 [n], in nats; not finite if no expert is healthy."""
    expert_losses: Tensor
    """Of each expert and example, [K, n], in nats."""
    norms: Tensor
    """‖g‖₂ of each expert, all tensors together, [K]."""
    healthy: Tensor
    """Whether an expert's losses and gradient are finite, bool [K]."""
    gradients: list[Tensor]
    """Of each expert's mean loss, [K, …], one for each parameter tensor."""


class PoolTelemetry(TypedDict):
    """The pool as a whole; device tensors."""

    weights: Tensor
    """Of the experts, fp32 [K], summing to 1."""
    ages: Tensor
    """Batches that each expert has learned since it began, int64 [K]."""
    best: Tensor
    """Index of the expert with the largest weight, int64, 0-dim."""
    step_sizes: dict[str, Tensor]
    """By parameter the weighted mean of η s, 0-dim."""
    tensors: dict[str, TensorTelemetry]
    """By parameter; see `funnel.telemetry.describe_stacked`."""


class Pool:
    """K experts, their Funnel and their weights, all in tensors with fixed storage.

    A batch goes through `observe`, `weigh` and `step`. The first two are functions of tensors
    without a host read, and can be traced together if the experts are plain (see
    `funnel.pool.networks.Experts`). ``step`` on a CPU asks once whether all experts learn the
    batch; if not, and on a GPU always, it masks out who does not, and sets it to where it goes on
    from.

    Args:
        module: fp32, maps [n, features] to logits [n, classes]; every expert starts as it is.
        features: width of the inputs.
        experts: their hyperparameters; by default those of `funnel.pool.expert.for_width`. Those
            with equal ``steps`` should stand together, and among them those with equal inner
            optimizers.
        rate: how much an example's evidence weighs (see `funnel.pool.mixing`).
        switch_rates: shares of the weight that are dealt out anew per example.

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
    ) -> None:
        experts = for_width(features) if experts is None else tuple(experts)
        if not experts:
            raise ValueError("a pool needs at least one expert")
        self.experts = experts
        self.models = Experts(module, len(experts), features)
        self.parameters, self.buffers = self.models.stack()
        first = next(iter(self.parameters.values()))
        self.device = first.device
        self.on_host = first.device.type == "cpu"
        self.mixing = FixedShare(len(experts), first.device, rate, switch_rates)
        self.cap = NormCap.fresh((len(experts),), first.device)
        self.renewal = Renewal(torch.tensor([e.renews for e in experts], device=first.device))
        self.inner = Grouped(runs_of(experts))
        parameters = list(self.parameters.values())
        self.rates = rates_of(experts, parameters)
        self.state = fresh_state(parameters)
        each = [self.inner.init_state(p, p.dtype) for p in parameters]
        self.inner_state: StateLists = {key: [own[key] for own in each] for key in each[0]}
        walks = walks_of(experts, self.rates.lr, parameters, self.state, self.inner_state)
        self.walks = list(walks) if self.models.is_plain else []
        self.alignment = Alignment(
            *([torch.zeros_like(s) for s in self.state.log_scale] for _ in Alignment._fields)
        )
        """Of the last step."""
        shared = chain(parameters, self.buffers.values(), *self.state, [self.cap.level])
        self._restart = Restart(list(shared), self.inner, self.inner_state)
        pulls = torch.tensor([expert.pull for expert in experts], device=self.device)
        self.pulls = pulls if any(expert.pull for expert in experts) else None
        tensors = [*self.tensors().values(), *chain.from_iterable(w.tensors() for w in self.walks)]
        self._walk_traced = Traced(partial(_walk, self), tensors)
        self._take_traced = Traced(partial(_take, self), tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, the tensors themselves.

        A state is saved by copying them, and resumed bit for bit by copying into them.
        """
        named = {f"model.{k}": v for k, v in (self.parameters | self.buffers).items()}
        named |= {f"mixing.{k}": v for k, v in self.mixing.tensors().items()}
        named["norm_level"] = self.cap.level
        named["excess"] = self.renewal.excess
        for i, name in enumerate(self.parameters):
            own = {field: getattr(self.state, field)[i] for field in State._fields}
            own |= {f"inner.{key}": tensors[i] for key, tensors in self.inner_state.items()}
            named |= {f"optimizer.{name}.{key}": tensor for key, tensor in own.items()}
        return named

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """Return the mixture's probabilities, fp32 [n, classes], always finite.

        Args:
            inputs: fp32 [n, features].
        """
        logits = self.models.logits(self.parameters, self.buffers, inputs)
        return predicted(self.mixing.log_weights, logits)

    @torch.no_grad()
    def observe(self, inputs: Tensor, labels: Tensor) -> Observation:
        """Score a batch with the weights as they are, and differentiate it.

        Args:
            inputs: fp32 [n, features].
            labels: int64 [n].
        """
        found = self.models.differentiate(self.parameters, self.buffers, inputs, labels)
        norm = norms_of(found.gradients)
        healthy = torch.isfinite(norm + found.training_losses + found.losses.sum(dim=1))
        log_weights = self.mixing.log_weights
        return Observation(
            mixing.mixed(log_weights, found.probabilities, healthy),
            mixing.mixed_losses(log_weights, found.losses, healthy),
            found.losses,
            norm,
            healthy,
            found.gradients,
        )

    @torch.no_grad()
    def weigh(self, seen: Observation, keep: Tensor) -> Tensor:
        """Let the experts' weights take a batch, and cut its gradients, in place.

        Args:
            seen: what `observe` returned for it.
            keep: bool, 0-dim; where it is False, or no expert is healthy, the weights stay and the
                gradients become NaN, at which `step` changes nothing.

        Returns:
            What each expert's gradients were multiplied with, [K], for `step`: NaN where an expert
            has diverged or is to begin anew, and of all if the batch changes nothing.
        """
        keep = keep & seen.healthy.any()
        learned = seen.healthy & keep
        self.renewal.update(seen.expert_losses, seen.probabilities.shape[1], learned)
        learned = learned & ~self.renewal.due()
        self.mixing.update(seen.expert_losses, seen.healthy, keep)
        factor = torch.where(learned, self.cap.factor(seen.norms), math.nan)
        for gradient in seen.gradients:
            gradient.mul_(column(factor, gradient))
        self.cap.update(seen.norms, learned)
        return factor

    @torch.no_grad()
    def step(
        self, inputs: Tensor, labels: Tensor, gradients: Sequence[Tensor], factor: Tensor
    ) -> None:
        """Learn a batch, let begin anew who is due to, and restart who has diverged.

        Who begins anew learns the batch if it walks; else it begins with the next. On a CPU not to
        be called for a batch that is not kept.

        Args:
            inputs: fp32 [n, features].
            labels: int64 [n].
            gradients: capped by `weigh`, [K, …], one for each parameter tensor.
            factor: what `weigh` returned.
        """
        if self.on_host and self._walk_traced(inputs, labels, factor).all():
            self.alignment = self._aligned(self._take_traced(*gradients))
            return
        due = self.renewal.due()
        self.renewal.begin(due)
        self._restart.begin(due)
        gradients = [torch.where(column(due, g), 0.0, g) for g in gradients]
        learns = _walk(self, inputs, labels, torch.where(due, 1.0, factor))
        last = self._aligned(_take(self, *gradients, learns=learns))
        diverged = ~learns & learns.any()
        self.renewal.begin(diverged)
        self._restart.from_best(diverged, self.mixing.log_weights)
        self._pull(learns)
        if self.on_host:
            self.alignment = last
        else:  # a captured step must leave it where it is
            torch._foreach_copy_(list(chain(*self.alignment)), list(chain(*last)))

    @torch.no_grad()
    def telemetry(self) -> PoolTelemetry:
        """Return the experts' weights, and what the step sizes of the mixture are doing.

        Device tensors, computed when called and only then.
        """
        weights = self.mixing.log_weights.exp()
        lr = weights.new_tensor([expert.lr for expert in self.experts])
        tensors: dict[str, TensorTelemetry] = {}
        step_sizes: dict[str, Tensor] = {}
        for i, name in enumerate(self.parameters):
            own = {field: getattr(self.state, field)[i] for field in State._fields}
            cosine, norm = self.alignment.cosine[i], self.alignment.gradient_norm[i]
            tensors[name] = describe_stacked(own, GAIN_BOUNDS, cosine, norm, weights)
            step_sizes[name] = weights @ (lr * own["log_scale"].exp().flatten())
        return {
            "weights": weights,
            "ages": self.state.step[0].flatten().clone(),
            "best": weights.argmax(),
            "step_sizes": step_sizes,
            "tensors": tensors,
        }

    @torch.no_grad()
    def log_gain(self, name: str) -> Tensor:
        """Return the weighted mean over the experts of one parameter's log p, of its shape."""
        log_gain = self.state.log_gain[list(self.parameters).index(name)]
        return mean_over_experts(log_gain, self.mixing.log_weights.exp())

    def _aligned(self, found: Sequence[Tensor]) -> Alignment:
        n = len(self.parameters)
        return Alignment(*(list(found[k : k + n]) for k in range(0, 3 * n, n)))

    def _pull(self, learned: Tensor | None = None) -> None:
        """Draw experts to the weighted mean: w_k ← w_k + pull_k (Σ v_j w_j - w_k).

        Args:
            learned: which of them learned the batch, bool [K]; None for all.
        """
        if self.pulls is None:
            return
        weights = self.mixing.log_weights.exp()
        for parameter in self.parameters.values():
            mean = mean_over_experts(parameter, weights)
            share = column(self.pulls, parameter)
            if learned is None:
                parameter.lerp_(mean, share)
            else:  # the mean is not finite while one who has diverged waits for a restart
                pulled = column(learned & (self.pulls > 0), parameter)
                parameter.copy_(torch.where(pulled, parameter.lerp(mean, share), parameter))


def predicted(log_weights: Tensor, logits: Tensor) -> Tensor:
    """Return the mixture's probabilities, fp32 [n, classes], always finite.

    Args:
        log_weights: of the experts, fp32 [K].
        logits: of the experts, fp32 [K, n, classes]; one who has any that is not finite is left
            out.
    """
    probabilities = logits.softmax(dim=-1)
    healthy = torch.isfinite(probabilities).flatten(1).all(dim=1)
    return mixing.mixed(log_weights, probabilities, healthy)


def _walk(pool: Pool, inputs: Tensor, labels: Tensor, factor: Tensor) -> Tensor:
    """Lead those through the batch who walk, and return who learns it, bool [K]."""
    learns = ~factor.isnan()
    for walk in pool.walks:
        learns[walk.own] &= walk.take(inputs, labels, factor)
    return learns


def _take(pool: Pool, *gradients: Tensor, learns: Tensor | None = None) -> tuple[Tensor, ...]:
    """Take the step of a batch, and return its alignment, flat.

    Args:
        pool: after `_walk`.
        gradients: one for each parameter tensor.
        learns: who takes it, bool [K]; None for all, who are then pulled, too.
    """
    if learns is not None:
        gradients = tuple(torch.where(column(learns, g), g, math.nan) for g in gradients)
    walked: dict[str, list[Tensor]] = {}
    for walk in pool.walks:
        walk.accept(None if learns is None else learns[walk.own])
        walked |= walk.precond()
    alignment = step_(
        list(pool.parameters.values()),
        list(gradients),
        pool.state,
        Grouped(pool.inner.runs, walked=walked),
        pool.inner_state,
        pool.rates,
        VARIANT._replace(skip_nonfinite=learns is not None),
    )
    if learns is None:
        pool._pull()
    return tuple(chain.from_iterable(alignment))
