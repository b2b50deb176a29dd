"""The step of a pool of linear experts as three compiled calls, in the place of some 400 operators.

`funnel.pool.pool.Pool` is the oracle: after a batch, all tensors agree with its own to 1e-5. The
state is the same tensors, so either of the two can take any batch. The pool takes those at which a
loss, a gradient or a walk is not finite, and those at which an expert is due for renewal. That is
decided by the numbers alone, so a replay decides alike.

Bits repeat on one machine, within and between processes. They differ from those of the pool, and
between CPUs; a checkpoint names what they depend on (`numerics`).
"""

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from funnel.compiled import loops
from funnel.inner.interface import StateLists
from funnel.inner.native import SGD, Adagrad
from funnel.pool import persistence
from funnel.pool.clipping import NORM_CAP, NORM_DOWN, NORM_UP, NormCap
from funnel.pool.expert import BETA, GAIN_BOUNDS, SCALE_BOUNDS, Expert
from funnel.pool.loss import CrossEntropy, Held, Loss
from funnel.pool.mixing import FixedShare
from funnel.pool.renewal import LIMIT, Renewal
from funnel.update import Alignment, State

KERNELS = "funnel.pool.fused.kernels"
VERSION = 1
"""Raise it with every change of a kernel that changes bits."""
Floats = npt.NDArray[np.float32]
_NOTHING = np.empty(0, np.float32)
_LEAST_ROOT = 1e-7
"""Largest ε of AdaGrad, in roots of its first a, that no sum with a root changes."""


def numerics() -> str:
    """Return what the bits of compiled steps depend on; ``none`` if there are none here."""
    if loops(KERNELS) is None:
        return "none"
    import llvmlite.binding as llvm
    import numba

    return f"{VERSION}, numba {numba.__version__}, {llvm.get_host_cpu_name()}"


class Parts(NamedTuple):
    """The parts of a pool that a compiled step reads and changes."""

    parameters: Sequence[Tensor]
    """Weights [K, C, d] and biases [K, C]."""
    state: State
    inner_state: StateLists
    held: Held
    mixing: FixedShare
    cap: NormCap
    renewal: Renewal


def fits(experts: Sequence[Expert], parameters: Sequence[Tensor], loss: Loss) -> bool:
    """Return whether experts, whose module is plain, can learn by compiled steps.

    They can where they are one linear layer on a CPU that learns two or more classes by
    cross-entropy; each is AdaGrad or SGD, and those that walk come last and walk equally far.
    """
    steps = [expert.steps for expert in experts]
    first = _first_walk(experts)
    return (
        len(parameters) == 2
        and parameters[0].device.type == "cpu"
        and parameters[0].shape[1] > 1
        and type(loss) is CrossEntropy
        and not loss.can_close
        and len(set(steps[first:])) <= 1
        and all(_can_be(expert) for expert in experts)
    )


def _can_be(expert: Expert) -> bool:
    inner = expert.inner
    if type(inner) is SGD:
        return True
    return type(inner) is Adagrad and (
        inner.eps <= _LEAST_ROOT * inner.initial_accumulator_value**0.5
    )


def _first_walk(experts: Sequence[Expert]) -> int:
    """Return the number of the first expert that walks; their count if none does."""
    return next((k for k, expert in enumerate(experts) if expert.steps > 1), len(experts))


class Found(NamedTuple):
    """A batch that was scored and differentiated; all is finite."""

    answers: Tensor
    """The mixture's probabilities, fp32 [n, C]."""
    chosen: Tensor
    """The likeliest class, int64 [n]."""
    mixed: Tensor
    """Losses of the mixture, fp32 [n]."""
    losses: Tensor
    """Losses of all that is mixed, fp32 [K or K + 1, n]."""
    each: Tensor
    """Probabilities of each expert, fp32 [K, n, C]."""


class _Batch(NamedTuple):
    """A batch as arrays, between the calls of its step."""

    z: Floats
    labels: npt.NDArray[np.int64]
    importance: Floats
    losses: Floats


class Fused:
    """The compiled step of a pool; its tensors are the pool's.

    A batch goes through `score`, `decide` and `update`, as it does through a pool.

    Args:
        experts: of the pool, which `fits`.
        parts: its tensors, whose storage stays where it is; but other tensors take the place of
            AdaGrad's accumulators, so that those of all experts lie one after the other.
        slices: prefix of the keys of each run of inner optimizers, and which experts it has.
    """

    def __init__(
        self, experts: Sequence[Expert], parts: Parts, slices: Sequence[tuple[str, slice]]
    ) -> None:
        count, self.classes, width = parts.parameters[0].shape
        rows, self.features = count * self.classes, width
        self._first = _first_walk(experts)
        self._steps = experts[-1].steps
        self._has_sums = np.array([type(expert.inner) is Adagrad for expert in experts])
        self._parts = parts
        sums = [torch.ones_like(p) for p in parts.parameters]
        for prefix, own in slices:
            for joined, each in zip(sums, parts.inner_state.get(f"{prefix}sum", []), strict=False):
                joined[own] = each
            if f"{prefix}sum" in parts.inner_state:
                parts.inner_state[f"{prefix}sum"] = [joined[own] for joined in sums]

        def arrays(tensors: Sequence[Tensor]) -> tuple[Floats, Floats]:
            of_weights, of_biases = (tensor.numpy() for tensor in tensors)
            return of_weights.reshape(rows, width), of_biases.reshape(rows, 1)

        state = parts.state
        self._w = arrays(parts.parameters)
        self._changed = (
            *self._w,
            *arrays(sums),
            *arrays(state.log_gain),
            *arrays(state.velocity),
            *arrays(state.precond_ema),
            *(tensor.numpy().reshape(count) for tensor in state.log_scale),
        )
        self._taken = [tensor.numpy() for tensor in state.step]
        self._last = parts.held["last"].numpy() if "last" in parts.held else _NOTHING
        mixing = parts.mixing
        all_ = len(mixing.log_weights)
        self._log_weights = mixing.log_weights.numpy()
        self._mixing = (
            self._log_weights, mixing.log_weights_at.numpy(), mixing.log_rate_weights.numpy(),
        )  # fmt: skip
        equal = np.full(all_, -np.log(all_), np.float32)
        rates = len(mixing.switch_rates)
        self._shares = (
            mixing.log_kept.numpy().reshape(rates),
            float(mixing.log_rates_kept),
            equal if mixing.log_dealt is None else mixing.log_dealt.numpy(),
            np.full(rates, -np.log(rates), np.float32),
        )
        self.gradients = [torch.zeros_like(p) for p in parts.parameters]
        """Gradients of each expert's mean loss in the last batch, as they were before the cap."""
        self._g = arrays(self.gradients)
        self._squares = np.zeros((2, count), np.float32)
        self.factor = torch.ones(count)
        """Factors of these gradients, [K] (see `funnel.pool.pool.Decision`)."""
        self._factor = self.factor.numpy()
        self.healthy = torch.ones(count, dtype=torch.bool)
        """True for all experts, bool [K]."""
        found = torch.zeros(2, 3, count)
        self._found = found.numpy()
        shapes = [tensor.shape for tensor in state.log_scale]
        self.alignment = Alignment(
            *([found[i, field].view(shapes[i]) for i in range(2)] for field in (0, 2, 1))
        )
        """Alignment of the last step."""
        self._batch: _Batch | None = None
        self._nowhere = (np.empty((0, width), np.float32), np.empty((0, 1), np.float32)) * 2
        self.configure(experts)

    def configure(self, experts: Sequence[Expert]) -> None:
        """Take the rates of the experts, which may change."""
        names = ("lr", "momentum", "gain_lr", "scale_lr")
        self._rates = np.array([[getattr(e, name) for e in experts] for name in names], np.float32)
        pulls = np.array([expert.pull for expert in experts], np.float32)
        self._pulls = pulls if pulls.any() else _NOTHING

    @property
    def norms(self) -> Tensor:
        """Lengths of these gradients, [K]."""
        return torch.from_numpy(np.sqrt(self._squares.sum(axis=0)))

    def capped(self) -> list[Tensor]:
        """Return the gradients of the last batch times their factors."""
        shapes = [[-1] + [1] * (g.dim() - 1) for g in self.gradients]
        return [g * self.factor.view(s) for g, s in zip(self.gradients, shapes, strict=True)]

    def score(self, inputs: Tensor, labels: Tensor, importance: Tensor | None) -> Found | None:
        """Score and differentiate a batch; nothing is learned.

        Args:
            inputs: fp32 [n, d].
            labels: int64 [n].
            importance: weights of the examples, fp32 [n]; None for 1.

        Returns:
            None where the pool must take the batch: something is not finite or no class, or there
            are no compiled loops.
        """
        self._batch = None
        if (kernels := loops(KERNELS)) is None or inputs.shape[1] != self.features:
            return None
        z, y = inputs.contiguous().numpy(), labels.contiguous().numpy()
        w = _NOTHING if importance is None else importance.contiguous().numpy()
        if y.min() < 0 or y.max() >= self.classes:
            return None
        n, rows, all_ = len(y), len(self._w[0]), len(self._log_weights)
        rival = self._no_change() if len(self._last) else _NOTHING
        answers, chosen = np.empty((n, self.classes), np.float32), np.empty(n, np.int64)
        mixed, losses = np.empty(n, np.float32), np.empty((all_, n), np.float32)
        each, error = np.empty(rows * n, np.float32), np.empty(rows * n, np.float32)
        kernels.outputs(z, *self._w, each)
        is_finite = kernels.judge(
            each, y, w, self._log_weights, rival, answers, chosen, mixed, losses, error
        )
        if not (is_finite and kernels.gradients(z, error, *self._g, self._squares)):
            return None
        self._batch = _Batch(z, y, w, losses)
        return Found(
            answers=torch.from_numpy(answers),
            chosen=torch.from_numpy(chosen),
            mixed=torch.from_numpy(mixed),
            losses=torch.from_numpy(losses),
            each=torch.from_numpy(each).view(-1, self.classes, n).mT,
        )

    def _no_change(self) -> Floats:
        """Return the probabilities of the classes if the last one comes again."""
        right, wrong, label = self._last + np.array([1.0, 1.0, 0.0], np.float32)
        found = np.full(self.classes, wrong / max(1, self.classes - 1), np.float32)
        found[int(label)] = right
        found /= right + wrong
        return found

    def decide(self, keep: bool) -> None:
        """Update the experts' weights with the batch that was scored last, and set `factor`.

        Args:
            keep: where it is False, nothing changes but `factor`, which is NaN.
        """
        if not keep:
            self._factor[:] = np.nan
            return
        assert self._batch is not None, "a batch is scored before it is decided on"
        kernels, (_, labels, importance, losses) = loops(KERNELS), self._batch
        assert kernels is not None, "they scored it"
        parts = self._parts
        kernels.decide(
            losses, importance, self.classes, parts.mixing.rate, *self._shares, *self._mixing,
            parts.renewal.renews.numpy(), parts.renewal.excess.numpy(), LIMIT,
            parts.cap.level.numpy(), self._squares, NORM_UP, NORM_DOWN, np.log(NORM_CAP),
            self._last, persistence.MEMORY, labels, self._factor,
        )  # fmt: skip

    def update(self) -> bool:
        """Learn the batch that was decided on last.

        Returns:
            False, with nothing changed, where the pool must take it: an expert is due for renewal,
            or a walk did not end finite.
        """
        kernels, batch = loops(KERNELS), self._batch
        assert kernels is not None, "they scored it"
        assert batch is not None, "a batch is scored before it is learned"
        if np.isnan(self._factor).any():
            return False
        walked: tuple[Floats, ...] | None = self._nowhere
        if self._first < len(self._factor):
            walked = self._walk(kernels, batch)
        if walked is None:
            return False
        kernels.update(
            self._factor, *self._g, self._squares, self._rates, self._has_sums, self._first,
            *walked, 1.0 - BETA, GAIN_BOUNDS[1], SCALE_BOUNDS[1], self._log_weights, self._pulls,
            *self._changed, self._found,
        )  # fmt: skip
        for taken in self._taken:
            taken += 1
        return True

    def _walk(self, kernels: ModuleType, batch: _Batch) -> tuple[Floats, ...] | None:
        """Return Σ g̃ and a of weights and biases at the ends of walks; None if not finite."""
        place = self._first * self.classes
        w, b, sums, sums_bias, log_gain, log_gain_bias, *_, log_scale, log_scale_bias = (
            self._changed
        )
        ends = sums[place:].copy(), sums_bias[place:].copy()
        total = np.zeros_like(ends[0]), np.zeros_like(ends[1])
        is_finite = kernels.walk(
            batch.z, batch.labels, batch.importance, self._first, self._steps, self._factor,
            self._rates[0], self._has_sums, log_gain, log_gain_bias, log_scale, log_scale_bias,
            w[place:].copy(), b[place:].copy(), *ends, *total,
        )  # fmt: skip
        return (*total, *ends) if is_finite else None
