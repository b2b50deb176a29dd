"""Modules as people write them, as factories for --model; `test_trial` says what is right."""

import random
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Base(nn.Module):
    """A linear model, whose forward others change."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Double(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class Half(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).half()


class Brain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else super().forward(x).bfloat16()


class SparseGradient(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(8, classes, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.table(x[:, 0].long().clamp(0, 7))
        return out


class SparseBuffer(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.register_buffer("graph", torch.eye(features).to_sparse())


class NoGrad(Base):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class NeverLearns(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.0


class Unused(Base):
    """The logits depend on the inputs alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3].requires_grad_()


class Tuple(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), x  # type: ignore[return-value]


class Mapping(Base):
    def forward(self, x: Tensor) -> Tensor:
        return {"logits": super().forward(x)}  # type: ignore[return-value]


class Wide(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes + 1)


class Squeezed(Base):
    """Right but for one example, whose logits lose a dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class OnlyOne(Base):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise ValueError("one example at a time")
        return super().forward(x)


class FrozenAlone(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.requires_grad_(False)


class WholeNumbers(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.steps = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)


class Complex(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))


class ComplexBuffer(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.register_buffer("phase", torch.zeros(3, dtype=torch.complex128))


class Views(Base):
    """Two parameters that are one memory."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.other = nn.Parameter(self.layer.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.other) + self.layer(x)


class Growing(Base):
    """Its buffer has a row more after each batch."""

    past: Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.register_buffer("past", torch.zeros(0, features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.past = torch.cat([self.past, x[:1]])
        return super().forward(x)


class Reassigning(Base):
    """Its buffer is another tensor after each batch."""

    mean: Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(dim=0)
        return super().forward(x - self.mean)


class PlainAttribute(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.mean = torch.zeros(features)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(dim=0)
        return super().forward(x - self.mean)


class Largest(Base):
    """A number of Python's that training changes, and evaluation uses."""

    largest = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.largest = max(self.largest, float(x.detach().abs().max()))
            return super().forward(x)
        return super().forward(x / self.largest)


class OwnGenerator(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.rng = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.from_numpy(self.rng.normal(size=x.shape).astype(np.float32))
        return super().forward(x)


class NumpyNoise(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * _numpys_mask(x)
        return super().forward(x)


def _numpys_mask(x: Tensor) -> Tensor:
    drawn = np.random.random_sample(x.shape)  # noqa: NPY002 - that is the fault
    return torch.from_numpy((drawn > 0.5).astype(np.float32))


class PythonNoise(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (random.random() if self.training else 1.0))


class NumpyStart(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        start = np.random.default_rng().normal(size=(classes, features))
        self.layer.weight.data = torch.from_numpy(start.astype(np.float32))


class AlwaysDrops(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5))


class Counting(Base):
    """Predictions change its buffer."""

    calls: Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(x)


class Clamping(Base):
    """It changes its weights itself."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.layer.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


class Neighbours(Base):
    """A sequence model that takes examples for steps of time."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.lstm = nn.LSTM(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.lstm(x)[0])


class SetsDtype(Base):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return super().forward(x)


class SetsThreads(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        torch.set_num_threads(torch.get_num_threads() + 1)


class Exits(Base):
    def forward(self, x: Tensor) -> Tensor:
        sys.exit("not on my watch")


class Uncopied(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.source = (number for number in range(3))


class Meta(Base):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.to("meta")


def scripted(features: int, classes: int) -> nn.Module:
    made: nn.Module = torch.jit.script(
        nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, classes))
    )
    return made


def lazy(features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, classes))


def old_weight_norm(features: int, classes: int) -> nn.Module:
    return nn.utils.weight_norm(nn.Linear(features, classes))


def nothing(features: int, classes: int) -> None:
    Base(features, classes)


def a_class(features: int, classes: int) -> type:
    return Base


def other_names(inputs: int, outputs: int) -> nn.Module:
    return Base(inputs, outputs)


def fails(features: int, classes: int) -> nn.Module:
    raise RuntimeError("two\nlines")


def exits(features: int, classes: int) -> nn.Module:
    sys.exit(3)


number = 7


class LongShort(nn.Module):
    """An LSTM over the features of each example."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 5, batch_first=True), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x[:, :, None])[0][:, -1])
        return out


class Attends(nn.Module):
    """A transformer over the features of each example."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embed(x[:, :, None])).mean(dim=1))
        return out


class Tied(nn.Module):
    """One layer in two places, and one parameter under two names."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.one = nn.Linear(features, features)
        self.two, self.three = self.one, nn.Linear(features, features)
        self.three.weight = self.one.weight
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.three(self.two(self.one(x).tanh()).tanh()))
        return out


class Embedded(nn.Module):
    """Indices, none above 9."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 8), nn.Linear(8 * features, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(x.long()).flatten(1))
        return out


class Talks(Base):
    def forward(self, x: Tensor) -> Tensor:
        print("forward", len(x))  # noqa: T201 - that is what it is for
        return super().forward(x)


class Keeps(Base):
    """It holds on to its inputs, and to a count that nothing depends on."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.last = self.calls + 1, x
        return super().forward(x)


class Seeds(Base):
    """It draws the same mask in every batch."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            torch.manual_seed(0)
            x = F.dropout(x, 0.2)
        return super().forward(x)


def spectral(features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(features, classes)))


def weight_norm(features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(features, classes)))


def frozen_in_part(features: int, classes: int) -> nn.Module:
    first = nn.Linear(features, 8).requires_grad_(False)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(8, classes))


def normalized(features: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(features, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, classes)
    )


def dropout(features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(features, classes))


def dropout_in_place(features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(features, classes))


def leaky(features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.LeakyReLU(0.1), nn.Linear(features, classes))


def leaky_in_place(features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.Linear(features, classes))


class Halves(nn.Module):
    """It changes its inputs by hand."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x *= 0.5
        out: Tensor = self.layer(x)
        return out


class HalvesACopy(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x * 0.5)
        return out
