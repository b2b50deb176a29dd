"""Families as people write them, as factories for --families; `test_added` says what is right."""

import random
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Generator, Tensor


class Centres:
    """Answers by the distances of a row from the mean of each class; or with the mean number."""

    names: tuple[str, ...] = ("near", "far")

    def __init__(self, features: int, classes: int = 0, quantiles: tuple[float, ...] = ()) -> None:
        self.levels = torch.tensor(quantiles or (0.5,))
        self.classes = classes
        self.counts = torch.ones(max(1, classes))
        self.sums = torch.zeros(max(1, classes), features)
        self.seen = torch.zeros(64)
        self.held = torch.zeros((), dtype=torch.int64)

    def tensors(self) -> Mapping[str, Tensor]:
        return {
            "counts": self.counts, "sums": self.sums, "seen": self.seen, "held": self.held
        }  # fmt: skip

    def answer(self, rows: Tensor) -> Tensor:
        if self.classes:
            apart = (rows[:, None] - self.sums / self.counts[:, None]).square().sum(dim=2)
            return torch.stack([(-apart / 2).softmax(dim=1), (-apart / 20).softmax(dim=1)])
        known = self.seen[: max(1, min(64, int(self.held)))]
        return torch.quantile(known, self.levels).expand(2, len(rows), -1)

    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        drawn = torch.rand(len(rows), generator=generator)
        for row, label, weight, draw in zip(rows, labels, weights, drawn, strict=True):
            if self.classes:
                self.counts[label] += weight
                self.sums[label] += weight * row
            elif weight > 0:  # a reservoir
                seen = int(self.held)
                at = seen if seen < 64 else int(draw * (seen + 1))
                if at < 64:
                    self.seen[at] = label
                self.held += 1


class Growing(Centres):
    """It goes on where there are more columns or classes."""

    def grow(self, smaller: Centres) -> None:
        for name, tensor in smaller.tensors().items():
            self.tensors()[name][tuple(map(slice, tensor.shape))] = tensor


class Differentiating(Centres):
    """Learns by a gradient of torch's."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.layer = torch.nn.Linear(features, classes)

    def tensors(self) -> Mapping[str, Tensor]:
        return dict(self.layer.named_parameters())

    def answer(self, rows: Tensor) -> Tensor:
        found: Tensor = self.layer(rows).softmax(dim=1)
        return found.expand(2, -1, -1)

    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        with torch.enable_grad():
            losses = torch.nn.functional.cross_entropy(self.layer(rows), labels, reduction="none")
            loss = (losses * weights).mean()
        for parameter, gradient in zip(
            self.layer.parameters(),
            torch.autograd.grad(loss, list(self.layer.parameters())),
            strict=True,
        ):
            parameter -= 0.1 * gradient


class Rings(Centres):
    """Knows the mean length of the rows of each class."""

    names = ("only",)

    def answer(self, rows: Tensor) -> Tensor:
        lengths = self.sums[:, 0] / self.counts
        apart = (rows.norm(dim=1, keepdim=True) - lengths).square()
        return (-4.0 * apart).softmax(dim=1)[None]

    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        self.counts.index_add_(0, labels, weights)
        self.sums[:, 0].index_add_(0, labels, weights * rows.norm(dim=1))


class RaisesOnLarge(Centres):
    """Raises where an input is beyond 4.9, which few are."""

    def answer(self, rows: Tensor) -> Tensor:
        if rows.shape[1] == 5 and bool((rows[:, 4] > 4.9).any()):
            raise ArithmeticError("too large")
        return super().answer(rows)

    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        super().learn(rows, labels, weights, generator)
        if bool((rows[:, 4] > 4.9).any()):
            raise ArithmeticError("too large to learn")


class GoesWild(Centres):
    """Its answers stop being numbers after 250 examples."""

    def answer(self, rows: Tensor) -> Tensor:
        found = super().answer(rows)
        return found * torch.where(self.counts.sum() > 250, torch.nan, 1.0)


class ForClasses(Centres):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)


class Unnormalized(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        return 3.0 * super().answer(rows)


class Negative(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        return super().answer(rows) * torch.tensor([2.0, -1.0, 0.0])[: self.classes]


class NotFinite(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        return super().answer(rows) / 0.0


class Squeezed(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        return super().answer(rows)[0]


class Listing(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        return cast(Tensor, super().answer(rows).tolist())


class Double(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        return super().answer(rows).double()


class Descending(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        return super().answer(rows).flip(2)


class Counting(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        self.held += 1
        return super().answer(rows)


class Company(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        return super().answer(rows - rows.mean(dim=0))


class Drawing(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        return super().answer(rows + torch.randn_like(rows))


class Hidden(Centres):
    """Holds a number that no tensor has."""

    steps = 1.0

    def answer(self, rows: Tensor) -> Tensor:
        return super().answer(rows * self.steps)

    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        super().learn(rows, labels, weights, generator)
        self.steps /= 2.0


class TorchNoise(Centres):
    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        super().learn(rows + torch.randn_like(rows), labels, weights, generator)


class NumpyNoise(Centres):
    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        noise = np.random.normal()  # noqa: NPY002 - that is the fault
        super().learn(rows + noise, labels, weights, generator)


class Projected(Centres):
    """Draws a projection as it is made, and keeps it to itself."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.projection = torch.randn(features)

    def answer(self, rows: Tensor) -> Tensor:
        return super().answer(rows * self.projection)


class PythonStart(Centres):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.sums += random.random()


class Replacing(Centres):
    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        self.sums = self.sums + 1.0


class Copying(Centres):
    def tensors(self) -> Mapping[str, Tensor]:
        return {name: tensor.clone() for name, tensor in super().tensors().items()}


class Views(Centres):
    def tensors(self) -> Mapping[str, Tensor]:
        return {**super().tensors(), "first": self.sums[0]}


class Complex(Centres):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.phase = torch.zeros(3, dtype=torch.complex128)

    def tensors(self) -> Mapping[str, Tensor]:
        return {**super().tensors(), "phase": self.phase}


class Raises(Centres):
    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        raise RuntimeError("two\nlines")


class Exits(Centres):
    def answer(self, rows: Tensor) -> Tensor:
        raise SystemExit("not on my watch")


class Many(Centres):
    names = tuple(map(str, range(33)))


class Spaced(Centres):
    names = ("near by", "far")


class Alike(Centres):
    names = ("near", "near")


class Listed(Centres):
    def __init__(self, features: int, classes: int = 0, quantiles: tuple[float, ...] = ()) -> None:
        super().__init__(features, classes, quantiles)
        self.names = cast(tuple[str, ...], ["near", "far"])


class Renamed(Centres):
    """The names of its experts go by the number of classes."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.names = (f"of-{features}", "far")


class Threads(Centres):
    def learn(self, rows: Tensor, labels: Tensor, weights: Tensor, generator: Generator) -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)


def a_class(features: int, classes: int) -> object:
    return Centres


def nothing(features: int, classes: int) -> object:
    return None


def half(features: int, classes: int) -> object:
    return torch.nn.Linear(features, classes)


def other_names(inputs: int) -> object:
    return Centres(inputs)


def fails(features: int, classes: int) -> object:
    raise RuntimeError("two\nlines")


number = 3
