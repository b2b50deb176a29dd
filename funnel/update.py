"""The equations of Funnel as functions on lists of tensors, one function per equation.

Source: E. Amid, R. Anil, C. Fifty, M. K. Warmuth, 'Step-size Adaptation Using Exponentiated
Gradient Updates', arXiv:2202.00145. Equation numbers are the paper's. Letters and names:

    w parameter    g gradient    g̃ preconditioned gradient    m precond_ema    ν velocity
    p gain, kept as log_gain = log p          s step-size scale, kept as log_scale = log s
    η lr    μ momentum    β beta    γp gain_lr    γs scale_lr

Every list holds one entry per parameter tensor, all on one device and of one dtype (fp32, or fp64
for fp64 parameters); only ``params`` and the raw gradients may have a lower precision. Entries of
``log_scale``, of ``step``, of norms and of per-tensor rates are 0-dim. They may also come together,
as a list of one tensor with an element for each of the N parameters, N > 1 (`funnel.scalars`): then
an operator on them costs one call. Where tensors are stacked,
with K experts on a leading dimension, those entries are [K, 1, …, 1], with as many dimensions as
their tensor, and each expert is updated as if it were alone. A table, whose gradients are sparse,
comes as its touched rows (`funnel.rows`), and ``step`` counts the visits of each. A trailing
underscore means that the function changes its first argument in place, and nothing else. No
function reads a tensor on the host or branches on one, so each can be captured in a CUDA graph or
compiled.
"""

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from funnel import tensorlists as lists
from funnel.blocks import Blocks
from funnel.inner.interface import Flags, Inner, Rate, masked

Bounds = tuple[float, float]
Select = Callable[[list[Tensor]], list[Tensor]]
Apart = Callable[[str, Tensor], list[Tensor]]

BLOCK = 65_536
"""Elements of a piece that an eager step on a CPU cuts off a tensor, for each thread; what one
operator writes then stays in a core's cache for the next."""


class State(NamedTuple):
    """The state of Algorithm 1 between steps, without that of the inner optimizer."""

    step: list[Tensor]
    """Steps applied so far (t), int64, 0-dim; for a table, the visits of each row, [rows, 1, …]."""
    log_gain: list[Tensor]
    log_scale: list[Tensor]
    velocity: list[Tensor]
    precond_ema: list[Tensor]
    nonfinite: list[Tensor]
    """Steps skipped because the gradient was not finite, int64, 0-dim."""


class Rates(NamedTuple):
    """The numbers of a step that may change without another compilation."""

    lr: Rate
    momentum: Rate
    beta: Rate
    one_minus_beta: Rate
    gain_lr: Rate
    scale_lr: Rate
    weight_decay: Rate
    """η·λ: the share of a weight that one step removes."""


class Variant(NamedTuple):
    """The variant of the paper's algorithm to run; a compiled step takes these as constants."""

    nesterov: bool
    maximize: bool
    normalize_gain: bool
    normalize_scale: bool
    gain_bounds: Bounds
    scale_bounds: Bounds
    decay_weights: bool
    skip_nonfinite: bool
    stacked: bool = False
    """True if the first dimension of every tensor counts experts."""


class Alignment(NamedTuple):
    """Each gradient compared with the velocity before this step; entries are 0-dim, or stacked."""

    inner_product: list[Tensor]
    """⟨g, ν⟩."""
    cosine: list[Tensor]
    """⟨g, ν⟩ / (‖g‖·‖ν‖) in [-1, 1]; 0 where a norm is 0, underflows, overflows or is NaN."""
    gradient_norm: list[Tensor]
    """‖g‖₂, which may be NaN or inf."""


def align(
    grads: list[Tensor], velocity: list[Tensor], stacked: bool = False, together: bool = False
) -> Alignment:
    """Return the terms of eqs. (6) and (12): ⟨g, ν⟩, its cosine and ‖g‖₂, per expert if stacked.

    Args:
        grads: g.
        velocity: ν.
        stacked: whether the first dimension of every tensor counts experts.
        together: whether to return the N scalars of each kind as one tensor [N].
    """
    norm, dot = (lists.stacked_norm, lists.stacked_dot) if stacked else (lists.norm, lists.dot)
    gradient_norm = norm(grads)
    inner_product = dot(grads, velocity)
    velocity_norm = norm(velocity)
    if together:
        gradient_norm, inner_product, velocity_norm = map(
            lists.together, (gradient_norm, inner_product, velocity_norm)
        )
    cosine = lists.scalarwise(
        lambda gv, g, v: _zero_nonfinite(gv / g / v).clamp(-1.0, 1.0),
        inner_product,
        gradient_norm,
        velocity_norm,
    )
    return Alignment(inner_product, cosine, gradient_norm)


def _zero_nonfinite(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def gain_(
    log_gain: list[Tensor],
    grads: list[Tensor],
    precond_ema: list[Tensor],
    gain_lr: Rate,
    bounds: Bounds,
) -> None:
    """Eq. (5), unnormalized gain: log p ← log p + γp · g ⊙ m̃, with m̃ from before this step.

    ``precond_ema`` is m. The bias correction of m̃ = m / (1-β^t) is one factor per tensor, which
    the caller includes in ``gain_lr``.
    """
    _exponentiated_gradient_(log_gain, lists.mul(grads, precond_ema), gain_lr, bounds)


def gain_normalized_(
    log_gain: list[Tensor],
    grads: list[Tensor],
    precond_ema: list[Tensor],
    gain_lr: Rate,
    bounds: Bounds,
) -> None:
    """Eq. (11), normalized gain: log p ← log p + γp · sgn(g) ⊙ sgn(m̃), m̃ from before this step.

    No bias correction is needed, because sgn(m̃) = sgn(m). The two signs are taken separately,
    because a product that underflows has lost its sign.
    """
    agreement = lists.mul_(lists.sign(grads), lists.sign(precond_ema))
    _exponentiated_gradient_(log_gain, agreement, gain_lr, bounds)


def scale_(
    log_scale: list[Tensor], inner_product: list[Tensor], scale_lr: Rate, bounds: Bounds
) -> None:
    """Eq. (6), unnormalized scale: log s ← log s + γs · ⟨g, ν⟩, with ν from before this step.

    This update grows with η, which ν contains, and with the size of the tensor, over which the sum
    runs. An inner product that is not finite leaves s unchanged.
    """
    ascent = lists.scalarwise(_zero_nonfinite, inner_product)
    _exponentiated_gradient_(log_scale, ascent, scale_lr, bounds)


def scale_normalized_(
    log_scale: list[Tensor], cosine: list[Tensor], scale_lr: Rate, bounds: Bounds
) -> None:
    """Eq. (12), normalized scale: log s ← log s + γs · ⟨g, ν⟩ / (‖g‖·‖ν‖), ν before this step."""
    _exponentiated_gradient_(log_scale, cosine, scale_lr, bounds)


def _exponentiated_gradient_(
    log_weight: list[Tensor], ascent: list[Tensor], rate: Rate, bounds: Bounds
) -> None:
    """Step by EGU [Kivinen & Warmuth 1997] in the log domain, then clamp to the log ``bounds``."""
    lists.add_scaled_(log_weight, ascent, rate)
    lists.clamp_(log_weight, *bounds)


def precond_ema_(precond_ema: list[Tensor], precond: list[Tensor], one_minus_beta: Rate) -> None:
    """EMA of the preconditioned gradients (Algorithm 1): m ← β m + (1-β) g̃ = m + (1-β) (g̃ - m)."""
    lists.lerp_(precond_ema, precond, one_minus_beta)


def bias_correction(step: list[Tensor], beta: Rate, dtype: torch.dtype) -> list[Tensor]:
    """Return 1-β^t with t at least 1, so that before the first step m̃ = m / (1-β) is 0, not 0/0."""
    if isinstance(beta, list):
        return lists.scalarwise(lambda t, b: 1.0 - b ** t.to(dtype).clamp(min=1.0), step, beta)
    return lists.scalarwise(lambda t: 1.0 - lists.power(beta, t.to(dtype).clamp(min=1.0)), step)


def gained_step(log_gain: list[Tensor], precond: list[Tensor], lr: Rate) -> list[Tensor]:
    """Return the new term of eq. (3), first line: η (p ⊙ g̃), with the new p."""
    step = lists.exp(log_gain)
    lists.mul_(step, precond)
    return lists.mul_(step, lr)


def velocity_(velocity: list[Tensor], gained: list[Tensor], momentum: Rate) -> None:
    """Eq. (3), first line: ν ← μ ν + η (p ⊙ g̃)."""
    if isinstance(momentum, float) and momentum == 0.0:
        lists.copy_(velocity, gained)
        return
    lists.mul_(velocity, momentum)
    lists.add_(velocity, gained)


def parameter_(
    params: list[Tensor], direction: list[Tensor], scale: list[Tensor], decay: Rate | None = None
) -> None:
    """Eq. (3), second line: w ← w - s ν, with the new s; with decay, w ← w - s ν - η λ w.

    The change is summed in the dtype of ``direction`` and rounded once to the precision of w.
    Weight decay is decoupled [Loshchilov & Hutter 2019]; s does not scale it.
    """
    if decay is None and params[0].dtype == direction[0].dtype:
        lists.sub_product_(params, direction, scale)
        return
    change = lists.mul(direction, scale)
    if decay is not None:
        weights = [w.to(d.dtype) for w, d in zip(params, direction, strict=True)]
        lists.add_(change, lists.mul(weights, decay))
    lists.sub_(params, change)


def _only_active(rates: Rates, active: Flags, decay_weights: bool) -> Rates:
    """Return rates at which the averages and weights of inactive tensors stay as they are."""
    return Rates(
        lr=masked(rates.lr, active),
        momentum=masked(rates.momentum, active, idle=1.0),
        beta=rates.beta,
        one_minus_beta=masked(rates.one_minus_beta, active),
        gain_lr=rates.gain_lr,
        scale_lr=masked(rates.scale_lr, active),
        weight_decay=masked(rates.weight_decay, active) if decay_weights else rates.weight_decay,
    )


class Coordinates(NamedTuple):
    """The arguments of a step of the coordinates of some tensors, or of pieces of them."""

    params: list[Tensor]
    grads: list[Tensor]
    log_gain: list[Tensor]
    velocity: list[Tensor]
    precond_ema: list[Tensor]
    inner_state: dict[str, list[Tensor]]
    step: list[Tensor]
    scale: list[Tensor]
    """The new s; 0 if the tensor is not active."""
    finite: Flags
    active: Flags
    rates: Rates

    def mapped(self, coordinates: Select, scalars: Select) -> "Coordinates":
        """Return other lists of the same: of coordinates by one function, of scalars by another."""
        return Coordinates(
            coordinates(self.params),
            coordinates(self.grads),
            coordinates(self.log_gain),
            coordinates(self.velocity),
            coordinates(self.precond_ema),
            {key: coordinates(own) for key, own in self.inner_state.items()},
            scalars(self.step),
            scalars(self.scale),
            None if self.finite is None else scalars(self.finite),
            None if self.active is None else scalars(self.active),
            Rates(*(scalars(rate) if isinstance(rate, list) else rate for rate in self.rates)),
        )


def step_(
    params: list[Tensor],
    grads: list[Tensor],
    state: State,
    inner: Inner,
    inner_state: dict[str, list[Tensor]],
    rates: Rates,
    variant: Variant,
    apart: Apart = lambda _, scalars: list(scalars.unbind()),
) -> Alignment:
    """Take one step of Algorithm 1: change ``params``, ``state`` and ``inner_state`` in place.

    With ``skip_nonfinite``, a tensor keeps its weights and all its state if ‖g‖₂ is not finite in
    the dtype of the state: NaN, inf, or squares that overflow, which an accumulator would never
    lose. Its gradient counts as zero then, and none of its averages decays.

    Scalars of the result come together if those of ``state`` do; ``apart`` then returns N entries
    with the elements of one such tensor, whose name it gets.
    """
    dtype = state.velocity[0].dtype
    is_together = len(state.log_scale) < len(params)
    grads = [g if g.dtype == dtype else g.to(dtype) for g in grads]
    if variant.maximize:
        grads = lists.neg(grads)
    alignment = align(grads, state.velocity, variant.stacked, is_together)
    finite = active = None
    counted: Tensor | list[Tensor] | int = 1
    if variant.skip_nonfinite:
        counted = finite = lists.scalarwise(torch.isfinite, alignment.gradient_norm)
        active = lists.scalarwise(lambda f: f.to(dtype), finite)
        lists.add_(state.nonfinite, lists.scalarwise(torch.logical_not, finite))
        rates = _only_active(rates, active, variant.decay_weights)
    if not variant.normalize_gain:
        gain_lr = lists.reciprocal(bias_correction(state.step, rates.beta, dtype))
        rates = rates._replace(gain_lr=lists.mul_(gain_lr, rates.gain_lr))
    if variant.normalize_scale:
        scale_normalized_(state.log_scale, alignment.cosine, rates.scale_lr, variant.scale_bounds)
    else:
        scale_(state.log_scale, alignment.inner_product, rates.scale_lr, variant.scale_bounds)
    scale = lists.exp(state.log_scale)
    if active is not None:
        lists.mul_(scale, active)

    def each(name: str, scalars: list[Tensor]) -> list[Tensor]:
        return apart(name, scalars[0]) if is_together else scalars

    whole = Coordinates(
        params,
        grads,
        state.log_gain,
        state.velocity,
        state.precond_ema,
        inner_state,
        each("step", state.step),
        each("scale", scale),
        None if finite is None else each("finite", finite),
        None if active is None else each("active", active),
        Rates(
            *(
                each(name, rate) if isinstance(rate, list) else rate
                for name, rate in zip(Rates._fields, rates, strict=True)
            )
        ),
    )
    for part in _parts(whole, inner, variant):
        coordinates_(part, inner, variant)
    lists.add_(state.step, counted)
    return alignment


def coordinates_(on: Coordinates, inner: Inner, variant: Variant) -> None:
    """Take the part of a step that handles each coordinate for itself, once s is known."""
    grads, rates = on.grads, on.rates
    if on.finite is not None:
        grads = lists.finite_or_zero(grads, on.finite)
    precond = inner.precondition(grads, on.inner_state, on.step, on.active)
    gain = gain_normalized_ if variant.normalize_gain else gain_
    gain(on.log_gain, grads, on.precond_ema, rates.gain_lr, variant.gain_bounds)
    precond_ema_(on.precond_ema, precond, rates.one_minus_beta)
    gained = gained_step(on.log_gain, precond, rates.lr)
    velocity_(on.velocity, gained, rates.momentum)
    direction = on.velocity
    if variant.nesterov:
        direction = lists.add(lists.mul(on.velocity, rates.momentum), gained)
    decay = rates.weight_decay if variant.decay_weights else None
    parameter_(on.params, direction, on.scale, decay)


def _parts(whole: Coordinates, inner: Inner, variant: Variant) -> Iterator[Coordinates]:
    """Yield the parts of a step that it takes one after the other."""
    if variant.stacked or not lists.prefers_blocks(whole.params):
        yield whole
        return
    size = BLOCK * torch.get_num_threads()
    can_cut = (
        sum(p.numel() for p in whole.params) >= 2 * size
        and inner.is_coordinatewise()
        and not whole.step[0].dim()
        and len({p.dtype for p in whole.params}) == 1  # `parameter_` rounds by the first one's
    )
    if not can_cut:
        yield whole
        return
    tensors = [*whole[:5], *whole.inner_state.values()]
    blocks = Blocks(tensors, size)
    pieces = whole.mapped(blocks.cut, blocks.spread)
    for run in blocks.runs:
        some = itemgetter(run)
        yield pieces.mapped(some, some)
