"""Trials: a family that a user adds is used once as it will be used, before it gets any data."""

import re
from itertools import pairwise
from typing import NoReturn

import torch
from safetensors.torch import save
from torch import Tensor

from funnel.families.added.added import Added
from funnel.families.added.answers import Misfit, calling
from funnel.families.interface import LIMIT, Examples, Given, Scaling
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Classes, Outcome
from service.fold import networks
from service.fold.added.factory import Factory
from service.fold.networks import ModelError, reason_of
from service.fold.trial import (
    ROWS,
    STEPS,
    TOLERANCE,
    extent,
    generators_kept,
    same,
    seed_generators,
)

MOST_EXPERTS = 32
"""Experts of a family; each is a value of a label in metrics."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
CLOSE = 1e-3
"""Most by which the sum of probabilities may differ from 1."""
GENERATOR = "draw from the generator that learn is given"


class _Strict(Factory):
    """A factory that excuses nothing."""

    def excuse(self, error: BaseException, when: str) -> None:
        raise error


class Trial:
    """One family of a user's on trial.

    Args:
        full: names its factory.
        features: width of its inputs.
        outcome: what it answers.
        grows: whether it may get more inputs and classes.
    """

    def __init__(self, full: str, features: int, outcome: Outcome, grows: bool) -> None:
        self.full, self.features, self.outcome, self.grows = full, features, outcome, grows

    def run(self) -> None:
        """Try all that the family will be used for.

        Raises:
            ModelError: it cannot be used; the message says why and what to do.
        """
        with torch.random.fork_rng(devices=[]), generators_kept():
            try:
                with networks.settings_kept(self.full):
                    self._try(self.features, self.outcome)
                    if self.grows:
                        self._grow()
            except ModelError:
                raise
            except Misfit as error:
                self._refuse(str(error))
            except (Exception, SystemExit) as error:  # a user's code may raise anything
                self._refuse(f"fails: {reason_of(error)}", error)

    def _refuse(self, why: str, cause: BaseException | None = None) -> NoReturn:
        raise ModelError(f"family {self.full} {why}") from cause

    def _made(self, features: int, outcome: Outcome, seed: int = 0) -> Added:
        _seed(seed)
        return Added(_Strict(self.full, seed), 0, features, outcome)

    def _try(self, features: int, outcome: Outcome) -> None:
        mine = self._made(features, outcome)
        self._check_names(mine)
        self._check_tensors(mine)
        self._check_start(mine, Added(_Strict(self.full, 0), 0, features, outcome))
        self._check_answers(mine)
        self._learn(mine, 0)
        other, again = self._resumed(mine), self._resumed(mine)
        found = [self._continued(one, seed) for one, seed in ((mine, 0), (other, 1), (again, 0))]
        if not all(map(same, found[0], found[1])):
            if all(map(same, found[0], found[2])):
                self._refuse(
                    "draws random numbers of its own, so that a resumed family would continue "
                    f"otherwise: {GENERATOR}"
                )
            self._refuse(
                "continues otherwise after a restart: it holds state that is not in tensors(), or "
                f"draws from a generator of its own. Return each tensor that it keeps; {GENERATOR}"
            )
        self._check_answers(mine)
        for n, weight in ((1, 1.0), (ROWS, 0.0)):
            mine.learn(*self._batch(mine, STEPS, n, weight))
        self._check_answers(mine)

    def _check_names(self, family: Added) -> None:
        names = family.family.names
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            self._refuse(f"has the names {names!r}, expected a tuple of texts")
        if not 1 <= len(names) <= MOST_EXPERTS:
            self._refuse(f"has {len(names)} names of experts, expected 1 to {MOST_EXPERTS}")
        if wrong := [name for name in names if not NAME.fullmatch(name)]:
            self._refuse(
                f"has an expert named {wrong[0]!r}: use at most 32 letters, digits and . _ -"
            )
        if len(set(names)) < len(names):
            self._refuse("names two experts alike")

    def _check_tensors(self, family: Added) -> None:
        held = family.family.tensors()
        for key, tensor in held.items():
            if not isinstance(key, str) or not isinstance(tensor, Tensor):
                self._refuse(f"returns {key!r} from tensors(), which is no tensor with a name")
            if tensor.layout != torch.strided or tensor.device.type != "cpu":
                self._refuse(f"has a tensor {key!r} that is sparse, or not on the CPU")
            try:
                save({key: tensor.detach().contiguous()})
            except (KeyError, ValueError, RuntimeError) as error:
                self._refuse(
                    f"has the tensor {key!r} of {tensor.dtype}, which no checkpoint can hold", error
                )
        extents = sorted((*extent(tensor), key) for key, tensor in held.items() if tensor.numel())
        for (_, end, key), (begin, _, other) in pairwise(extents):
            if begin < end:
                self._refuse(
                    f"has {key!r} and {other!r} in the same memory: return it under one name"
                )
        again = family.family.tensors()
        if any(again.get(key) is not tensor for key, tensor in held.items()):
            self._refuse(
                "returns new tensors from each call of tensors(): return those that it keeps"
            )

    def _check_start(self, mine: Added, other: Added) -> None:
        for key, tensor in mine.tensors().items():
            found = other.tensors().get(key)
            if found is None or not same(tensor, found):
                self._refuse(
                    f"starts with other values of {key.partition('.')[2]!r} each time it is made: "
                    "draw them with torch, which is seeded then"
                )

    def _check_answers(self, family: Added) -> None:
        """Answer as a service does, in other company, and twice; nothing may change."""
        rows = _rows(family.features, 2 * ROWS)
        before = {name: tensor.clone() for name, tensor in family.tensors().items()}
        drawn = torch.get_rng_state()
        whole = family.answer(rows)
        if not torch.equal(drawn, torch.get_rng_state()):
            self._refuse("draws random numbers as it answers, which a prediction must not")
        with calling():
            self._check_values(family.family.answer(rows.clone()))
        again = family.answer(rows)
        if any(not same(tensor, before[name]) for name, tensor in family.tensors().items()):
            self._refuse("changes its tensors as it answers: a prediction must change nothing")
        if not same(whole, again):
            self._refuse("answers otherwise when it is asked again")
        alone = torch.cat([family.answer(row[None]) for row in rows], dim=1)
        scale = float(whole.abs().nan_to_num(0.0, 0.0, 0.0).max())
        if not torch.allclose(alone, whole, TOLERANCE, TOLERANCE * scale + 1e-6, equal_nan=True):
            self._refuse(
                "answers a row otherwise when it comes with other rows, as predictions of several "
                "clients do"
            )

    def _check_values(self, found: Tensor) -> None:
        if not bool(torch.isfinite(found).all()):
            self._refuse("answers numbers that are not finite")
        if isinstance(self.outcome, Classes):
            if bool((found < 0.0).any()):
                self._refuse("answers probabilities below 0")
            total = found.sum(dim=2)
            if float((total - 1.0).abs().max()) > CLOSE:
                self._refuse(
                    f"answers probabilities that sum to {float(total.flatten()[0]):.3g}: divide "
                    "them by their sum"
                )
        elif found.shape[2] > 1 and bool((found.diff(dim=2) < 0.0).any()):
            self._refuse("answers quantiles that do not ascend: sort them along the last dimension")

    def _batch(
        self, family: Added, number: int, n: int = ROWS, weight: float = 1.0
    ) -> tuple[Tensor, Examples]:
        rows, outcome = _rows(family.features, n, number), family.outcome
        labels = torch.arange(n) % outcome.outputs
        if isinstance(outcome, Numbers):
            labels = torch.linspace(-1.0, 1.0, n)
        one = torch.ones(family.features)
        given = Given(rows, Scaling(torch.zeros_like(one), one))
        return rows, Examples(given, labels, torch.full((n,), weight), (0, number))

    def _learn(self, family: Added, number: int) -> None:
        family.learn(*self._batch(family, number))

    def _resumed(self, family: Added) -> Added:
        """Return an instance that was made from other draws, and goes on from copies of the
        tensors."""
        other = self._made(family.features, family.outcome, seed=1)
        with torch.no_grad():
            for name, tensor in other.tensors().items():
                tensor.copy_(family.tensors()[name])
        return other

    def _continued(self, family: Added, seed: int) -> list[Tensor]:
        """Let it learn the batches after the first; return answers and state."""
        _seed(seed)
        rows = _rows(family.features, ROWS)
        found = [family.answer(rows)]
        for number in range(1, STEPS):
            self._learn(family, number)
            found.append(family.answer(rows))
        return found + [tensor.clone() for tensor in family.tensors().values()]

    def _grow(self) -> None:
        """Grow as the columns and classes of rows do."""
        smaller, outcome = self._made(self.features, self.outcome), self.outcome
        self._learn(smaller, 0)
        if isinstance(outcome, Classes):
            outcome = Classes(torch.ones(2 * outcome.outputs, dtype=torch.bool))
        larger = smaller.resized(2 * self.features, outcome)
        self._learn(larger, 1)
        self._check_answers(larger)


def _rows(features: int, n: int, number: int = 0) -> Tensor:
    """Return inputs as they come, standardized, fp32 [n, features]; the first column is missing."""
    draw = torch.Generator().manual_seed(number)
    rows = torch.randn(n, features, generator=draw).clamp_(-LIMIT, LIMIT)
    rows[:: max(2, n // 2), 0] = 0.0
    return rows


def _seed(seed: int) -> None:
    """Seed the generators that a family must not draw from."""
    torch.manual_seed(seed)
    seed_generators(seed)
