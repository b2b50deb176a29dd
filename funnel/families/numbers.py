"""Numbers, or quantiles of them, as outcomes of families; all are standardized.

The loss of an answer q to a number y is Huber's, tilted by the quantile τ [W. Dabney et al.,
'Distributional reinforcement learning with quantile regression', AAAI 2018, eq. 10],

    ρ(r) = |τ - 1[r < 0]| · 2 H(r),    r = y - q,

where H is quadratic within a knee and linear beyond. τ = 1/2 and a wide knee give a robust mean, a
narrow knee gives quantiles. Each step on it, of a leaf or of a stack, is one of iteratively
reweighted least squares: a residual has the weight |τ - 1[r < 0]| · 2 min(1, knee / |r|).

The mixture's quantiles are moved by a shift b_τ for each, in units of its own loss of late. After
every example it goes up by a step of τ where the number was above and down by one of 1 - τ where it
was below, so that in the long run quantiles hold their shares whatever the experts do [A. N.
Angelopoulos, E. J. Candès, R. J. Tibshirani, 'Conformal PID control for time series prediction',
NeurIPS 2023, §2.1].
"""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from funnel.families.forests.growing import Slopes, projections
from funnel.families.outcomes import Evidence, Held, Newton
from funnel.pool import deviation

BOUND = 12.0
"""Numbers beyond count as ±BOUND, so that one wild number spoils little."""
WIDE, NARROW = 2.0, 0.1
"""Knees of means and of quantiles, in mean absolute residuals."""
LEADS = 0.8
"""Weight of the leading pool's own answer in the mixture of means at first."""
RATE = 0.5
"""Share of a leaf's step that is taken."""
LEAST = 1e-4
"""Least unit."""
NORMAL = 0.8
"""Mean absolute deviation of a normal distribution of variance 1, about."""
MEMORY = 300.0
"""Examples that running means of the mixture's errors remember."""
SHIFT_RATE, MOST_SHIFTED, FARTHEST_SHIFT = 0.02, 50.0, 10.0
"""How far an example outside its share moves a quantile, in units; examples of a batch that count
for it; and how far a quantile is moved at most."""


class Numbers:
    """Numbers, or quantiles of them.

    Args:
        quantiles: ascending, each within (0, 1); none for a mean.
        device: where numbers are.
        is_quick: whether the deviation of means follows errors that shrink or grow fast
            (`funnel.pool.deviation`).
        follows_jumps: whether it follows, after one large batch, errors that have become many times
            larger.
    """

    label_type = torch.float32
    lags = 4
    constants = 1
    pools = 1
    rate = 0.6
    ridge = 100.0
    fading = 2.0

    def __init__(
        self,
        quantiles: tuple[float, ...],
        device: torch.device,
        is_quick: bool = False,
        follows_jumps: bool = False,
    ) -> None:
        self.quantiles, self.device, self.is_quick = quantiles, device, is_quick
        self.follows_jumps = follows_jumps
        self.is_mean, self.outputs = not quantiles, max(1, len(quantiles))
        self.stacks: tuple[int, ...] = (self.outputs,)
        self.levels = torch.tensor(quantiles or (0.5,), device=device)
        normal = [NormalDist().inv_cdf(level) for level in quantiles or (0.5,)]
        self.normal = torch.tensor(normal, device=device)
        """Quantiles of a normal distribution, fp32 [A]."""
        self.leads = LEADS if self.is_mean else 0.25
        self.knee = WIDE if self.is_mean else NARROW

    def prior(self) -> Tensor:
        """Return the count, sum and sum of squares of a number with variance 1."""
        return torch.tensor([1.0, 0.0, 1.0], device=self.device)

    def counted(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Return count, sum, and sum of squares."""
        near = labels.clamp(-BOUND, BOUND)
        return torch.stack([weights.sum(), weights @ near, weights @ near.square()])

    def opened(self, prior: Tensor) -> Tensor:
        """Return them: numbers have no classes."""
        return prior

    def rescaled(self, prior: Tensor, ratio: Tensor, shift: Tensor) -> Tensor:
        """Implement `Outcome.rescaled`."""
        count, first, second = prior
        squares = ratio.square() * second + 2.0 * ratio * shift * first + shift.square() * count
        return torch.stack([count, ratio * first + shift * count, squares])

    def recent(self, shares: Tensor) -> Tensor:
        """Return the means, or the middle quantiles."""
        return shares[:, self.outputs // 2]

    def _moments(self, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation."""
        count, first, second = prior
        mean = first / count
        return mean, (second / count - mean.square()).clamp(min=LEAST**2).sqrt()

    def alone(self, prior: Tensor) -> Tensor:
        """Return the mean, or the quantiles of a normal distribution."""
        mean, deviation = self._moments(prior)
        return mean + deviation * self.normal

    def offset(self, prior: Tensor) -> Tensor:
        """Return the same."""
        return self.alone(prior)

    def answers(self, outputs: Tensor) -> Tensor:
        """Return outputs within BOUND; quantiles ascend."""
        return self._ascending(outputs.clamp(-BOUND, BOUND))

    def of_pool(self, experts: Tensor, own: Tensor) -> Tensor:
        """Return them all, without deviations."""
        return torch.cat([experts, own[None]])[..., : self.outputs]

    def known(self, answers: Tensor) -> Tensor:
        """Return answers within BOUND: the normal ones where an expert has diverged."""
        is_known = torch.isfinite(answers).all(dim=2, keepdim=True)
        return torch.where(is_known, answers.clamp(-BOUND, BOUND), self.normal)

    def _ascending(self, answers: Tensor) -> Tensor:
        return answers if self.outputs == 1 else answers.sort(dim=-1).values

    def _pulls(self, missed: Tensor, unit: Tensor) -> Tensor:
        """Return the weights of residuals in the next least squares, [..., A]; about 1 for those as
        large as the unit."""
        side = torch.where(missed < 0.0, 1.0 - self.levels, self.levels) * 2.0
        least, most = self.knee * unit, max(1.0, 1.0 / self.knee)
        return side * (most * (least / missed.abs().clamp(min=1e-12)).clamp(max=1.0))

    def slopes(
        self, labels: Tensor, weights: Tensor, outputs: Tensor, generator: torch.Generator
    ) -> Slopes:
        """Implement `Outcome.slopes`."""
        missed = labels.clamp(-BOUND, BOUND)[:, None] - outputs
        unit = missed.abs().mean(dim=0).clamp(min=LEAST)
        curvature = (self._pulls(missed, unit) * weights[:, None]).t()
        gradient = curvature * missed.t()
        if self.outputs == 1:
            return Slopes(gradient, curvature, gradient, curvature[0], RATE)
        projected = projections(gradient, generator)
        return Slopes(gradient, curvature, projected, curvature.mean(dim=0), RATE)

    def voted(self, labels: Tensor, votes: Tensor, prior: Tensor, k: int) -> Tensor:
        """Return the weighted means or quantiles."""
        return self.summary(labels, votes)

    def summary(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Return weighted means or quantiles, fp32 [n, A]; quantiles lie between two numbers as
        far as their weights say.

        Args:
            labels: fp32 [n, k].
            weights: fp32 [n, k], not below 0.
        """
        near = labels.clamp(-BOUND, BOUND)
        total = weights.sum(dim=1, keepdim=True).clamp(min=1e-30)
        if self.is_mean:
            return (weights * near).sum(dim=1, keepdim=True) / total
        ordered, order = near.sort(dim=1, stable=True)
        shares = weights.gather(1, order) / total
        middles = shares.cumsum(dim=1) - 0.5 * shares
        levels = self.levels.expand(len(near), -1).contiguous()
        last = near.shape[1] - 1
        after = torch.searchsorted(middles.contiguous(), levels).clamp_(max=last)
        before = (after - 1).clamp(min=0)
        low, high = middles.gather(1, before), middles.gather(1, after)
        part = ((levels - low) / (high - low).clamp(min=1e-12)).clamp(0.0, 1.0)
        return torch.lerp(ordered.gather(1, before), ordered.gather(1, after), part)

    def _pinball(self, missed: Tensor) -> Tensor:
        """Return the mean over quantiles of twice the pinball loss, [...], of [..., A]."""
        sides = torch.where(missed < 0.0, self.levels - 1.0, self.levels) * 2.0
        found: Tensor = (sides * missed).mean(dim=-1)
        return found

    def losses(self, answers: Tensor, labels: Tensor, unit: Tensor) -> Tensor:
        """Return absolute errors, or twice the mean pinball loss, in units."""
        missed = labels.clamp(-BOUND, BOUND)[:, None] - answers
        return self._pinball(missed) / unit

    def spread(self, prior: Tensor) -> Tensor:
        """Return the mean loss of the statistics alone, if numbers were normal."""
        loss = torch.exp(-0.5 * self.normal.square()).mean() * math.sqrt(2.0 / math.pi)
        return self._moments(prior)[1] * loss

    def ignorance(self, prior: Tensor, labels: Tensor, weights: Tensor) -> float:
        """Return the loss of the statistics alone."""
        each = self.losses(self.alone(prior), labels, self.spread(prior))
        return float((each * weights).sum())

    def fresh(self) -> dict[str, Tensor]:
        """Return its mean loss ``unit``, the mean square ``square`` of its errors, the examples
        ``seen``, and the ``shift`` of each quantile."""
        one = torch.ones((), device=self.device)
        shift = torch.zeros(self.outputs, device=self.device)
        known = {"unit": NORMAL * one, "square": one.clone(), "seen": torch.zeros_like(one)}
        if not self.is_mean:
            return known | {"shift": shift}
        return known | deviation.fresh(one) if self.is_quick else known

    def unit(self, held: Held) -> Tensor:
        """Return the mixture's own mean loss of late."""
        return held["unit"]

    def learn(
        self,
        held: Held,
        answers: Tensor,
        raw: Tensor,
        labels: Tensor,
        importance: Tensor,
        keep: Tensor,
    ) -> None:
        """Implement `Outcome.learn`."""
        n = importance.sum()
        share = importance / n.clamp(min=1e-12)
        near = labels.clamp(-BOUND, BOUND)[:, None]
        missed = unsorted = near - answers
        if self.follows_jumps and not self.is_mean:
            # sorted, a shift may have moved another quantile than its own, and runs away
            unsorted = near - raw - held["unit"] * held["shift"]
        middle = missed[:, self.outputs // 2]
        bound = deviation.reach(middle, held["square"], self.follows_jumps)
        squares = middle.clamp(-bound, bound).square()
        rate = n / (held["seen"].clamp(max=MEMORY) + n).clamp(min=1.0) * keep
        loss = (share * self._pinball(missed)).sum()
        held["unit"].lerp_(loss, rate).clamp_(min=LEAST)
        square = (share * squares).sum()
        if deviation.QUICK in held:
            self._follow(held, missed[:, 0], share, square, n * keep)
        held["square"].lerp_(square, rate).clamp_(min=LEAST**2)
        if not self.is_mean:
            above = (share[:, None] * (unsorted >= 0.0)).sum(dim=0)  # should be 1 - τ
            step = SHIFT_RATE * n.clamp(max=MOST_SHIFTED) * keep
            held["shift"].add_(step * (above - (1.0 - self.levels)))
            held["shift"].clamp_(-FARTHEST_SHIFT, FARTHEST_SHIFT)
        held["seen"].add_(n * keep)

    def _follow(self, held: Held, missed: Tensor, share: Tensor, square: Tensor, n: Tensor) -> None:
        """Learn how fast the deviation of the errors changes, [n], of examples with shares."""
        slow, quick, trust = held["square"], held[deviation.QUICK], held[deviation.TRUST]
        bound = deviation.reach(missed, quick, self.follows_jumps)
        both = (square, (share * missed.clamp(-bound, bound).square()).sum())
        new, weight = deviation.followed(slow, quick, trust, both, n, held["seen"])
        quick.copy_(torch.where(n > 0.0, new.clamp(min=LEAST**2), quick))
        trust.copy_(torch.where(n > 0.0, weight, trust))

    def rescale(self, held: Held, ratio: Tensor) -> None:
        """Let what it has learned be of numbers in another unit."""
        held["unit"].mul_(ratio).clamp_(min=LEAST)
        for name in ("square", deviation.QUICK):
            if name in held:
                held[name].mul_(ratio.square()).clamp_(min=LEAST**2)
        if self.follows_jumps:
            blank = deviation.jumped(ratio)
            for name, fresh in self.fresh().items():
                if name in ("unit", "square", deviation.QUICK):
                    held[name].copy_(torch.where(blank, fresh, held[name]))

    def evidence(self, answers: Tensor, held: Held) -> Evidence:
        """Return the distances of answers from their mean, in units, and a column of ones."""
        center = answers.mean(dim=0)
        values = ((answers - center) / held["unit"]).transpose(0, 1)
        return Evidence(torch.cat([values, torch.ones_like(values[:, :1])], dim=1), center)

    def stacked(self, weights: Tensor, evidence: Evidence, held: Held) -> Tensor:
        """Return the mean answer and Σ a_k times the distance of expert k from it."""
        assert evidence.center is not None, "numbers have a center"
        moved = torch.einsum("ak,nka->na", weights.float(), evidence.values)
        return (evidence.center + held["unit"] * moved).clamp(-BOUND, BOUND)

    def newton(
        self,
        hessian: Tensor,
        evidence: Evidence,
        answers: Tensor,
        labels: Tensor,
        importance: Tensor,
        held: Held,
    ) -> Newton:
        """Return the derivatives of the tilted Huber loss, of each quantile."""
        missed = (labels.clamp(-BOUND, BOUND)[:, None] - answers) / held["unit"]
        pulls = self._pulls(missed, torch.ones_like(held["unit"])) * importance[:, None]
        values = evidence.values.double()
        pulled = values * pulls.double()[:, None]
        gradient = torch.einsum("nka,na->ak", pulled, missed.double())
        return Newton(hessian + torch.einsum("nka,nla->akl", pulled, values), gradient)

    def completed(self, answers: Tensor, held: Held) -> Tensor:
        """Return a mean as it is, and quantiles shifted so that they hold their shares; they
        ascend."""
        if self.is_mean:
            return answers
        return self.answers(answers + held["unit"] * held["shift"])

    def chosen(self, answers: Tensor) -> Tensor:
        """Return the number, or the middle quantile."""
        return answers[:, self.outputs // 2]

    def scored(self, answers: Tensor, labels: Tensor, held: Held) -> Tensor:
        """Return the losses in units of late."""
        return self.losses(answers, labels, held["unit"])

    def shown(self, answers: Tensor, held: Held) -> Tensor:
        """Return quantiles as they are, and a mean with the deviation of the errors of late."""
        if not self.is_mean:
            return answers
        if deviation.QUICK in held:
            means = (held["square"], held[deviation.QUICK], held[deviation.TRUST])
            found = deviation.deviation(*means)
        else:
            found = held["square"].sqrt()
        return torch.cat([answers, found.expand_as(answers)], dim=1)
