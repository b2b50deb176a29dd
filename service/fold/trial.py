"""Trials: a user's module is used once as it will be used, before it gets any data.

A trial runs on copies and leaves no trace. A module that cannot be learned, predicted from, or
replayed bit for bit is refused by name, with what to do.
"""

import copy
import functools
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NoReturn

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from funnel.pool.backprop import is_perceptron
from funnel.pool.expert import Expert
from funnel.pool.loss import Loss
from funnel.pool.networks import Experts
from funnel.pool.pool import Pool, predicted
from service.fold import networks
from service.fold.networks import ModelError, reason_of
from service.fold.spec import Spec
from service.fold.standardizer import LIMIT

logger = logging.getLogger("funnel")

ROWS = 8
"""Examples in a batch of a trial."""
STEPS = 3
"""Steps of a trial; the state is resumed after the first."""
TOLERANCE = 1e-2
"""Differences between outputs, as a share of the largest, that may come from rounding."""
TORCH_ONLY = "draw with torch instead, which every step seeds"


class Trial:
    """One user's module on trial.

    Args:
        spec: names the module, and gives its widths.
        module: as built; it stays as it is.
        loss: by which it will learn.
        device: where it will run.
    """

    def __init__(self, spec: Spec, module: nn.Module, loss: Loss, device: torch.device) -> None:
        self.spec, self.name, self.loss, self.device = spec, spec.model, loss, device
        self._outputs = spec.predicts.outputs(spec.classes)
        self._check_tensors(module)
        try:
            self.module = copy.deepcopy(module).to(device)
        except Exception as error:  # a user's code may raise anything
            self._refuse(
                f"cannot be copied by copy.deepcopy: {reason_of(error)}. If it is of "
                "torch.nn.utils.weight_norm, take torch.nn.utils.parametrizations.weight_norm",
                error,
            )
        draw = torch.Generator().manual_seed(0)
        shape = (STEPS * ROWS, spec.features)
        normal = torch.randn(shape, generator=draw).clamp_(-LIMIT, LIMIT)
        kinds = (
            normal[normal.abs().amax(dim=1).argsort(descending=True)],
            torch.rand(shape, generator=draw),
            torch.randint(2, shape, generator=draw).float(),
            torch.zeros(shape),
        )
        self._kinds = [inputs.to(device) for inputs in kinds]
        """Inputs [STEPS * ROWS, d] of several kinds; a module need only take one of them."""
        self._labels = self._some_labels().to(device)
        self.writes_inputs = False
        """True if the module was seen to change its inputs in place."""

    def _some_labels(self) -> Tensor:
        """Return labels as the task has them, int64 or fp32 [ROWS]."""
        if self.spec.predicts.is_numeric:
            return torch.linspace(-1.0, 1.0, ROWS)
        return torch.arange(ROWS) % self.spec.classes

    def _refuse(self, why: str, cause: BaseException | None = None) -> NoReturn:
        raise ModelError(f"{self.name} {why}") from cause

    def run(self, experts: Sequence[Expert]) -> None:
        """Try all that the module will be used for.

        Args:
            experts: of the learner that it will belong to.

        Raises:
            ModelError: it cannot be used; the message says why and what to do.
        """
        cuda = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=cuda),
            generators_kept(),
            networks.settings_kept(self.name),
        ):
            self._check_start()
            inputs = self._differentiate()
            self._evaluate(inputs)
            self._try_one_example(inputs)
            if not is_perceptron(self.module):
                self._resume(experts, inputs)

    def _check_tensors(self, module: nn.Module) -> None:
        """Check what can be seen without a call."""
        for place, part in module.named_modules():
            if isinstance(part, torch.jit.ScriptModule):
                where = f" in {place!r}" if place else ""
                self._refuse(f"holds TorchScript{where}, which cannot be differentiated for "
                             "several experts: return the module itself")  # fmt: skip
        held = dict(module.named_parameters()) | dict(module.named_buffers())
        for key, tensor in held.items():
            if is_lazy(tensor):
                self._refuse(
                    f"is lazy: the shape of {key!r} is not known. Give its width, or call the "
                    "module once, on torch.zeros(2, features), before you return it"
                )
            if tensor.is_meta:
                self._refuse(f"has no values: {key!r} is on the device meta")
            if tensor.layout != torch.strided:
                self._refuse(f"has the sparse tensor {key!r}: make it dense")
        for key, parameter in module.named_parameters():
            if parameter.dtype != torch.float32:
                self._refuse(
                    f"has the parameter {key!r} of {parameter.dtype}, expected float32: convert it "
                    "by .float(), or register a constant as a buffer"
                )
        for key, buffer in module.named_buffers():
            try:
                save({key: torch.empty(0, dtype=buffer.dtype)})
            except (KeyError, ValueError, RuntimeError) as error:
                self._refuse(
                    f"has the buffer {key!r} of {buffer.dtype}, which no checkpoint can hold", error
                )
        if not any(parameter.requires_grad for parameter in module.parameters()):
            self._refuse("has no parameters to learn")
        extents = sorted((*extent(tensor), key) for key, tensor in held.items() if tensor.numel())
        for (_, end, key), (begin, _, other) in pairwise(extents):
            if begin < end:
                self._refuse(
                    f"has {key!r} and {other!r} in the same memory, where neither would follow the "
                    "other: use one and the same torch.nn.Parameter in both places"
                )

    def _check_start(self) -> None:
        """Check that another process starts with the same weights."""
        spec = self.spec
        again = networks.build(spec.model, spec.features, self._outputs, spec.hidden, spec.seed)
        for key, tensor in _tensors(again.to(self.device)).items():
            mine = _tensors(self.module).get(key)
            if mine is None or not same(mine, tensor):
                self._refuse(
                    f"starts with other values of {key!r} each time it is built, so that a restart "
                    f"could not repeat what was learned: {TORCH_ONLY}, or load them from a file"
                )

    def _differentiate(self) -> Tensor:
        """Differentiate a loss in training mode; return the first inputs that the module takes."""
        taken: list[Tensor] = []
        is_finite = False
        raised: BaseException = ValueError()
        for inputs in self._kinds:
            try:
                found = self._gradients(inputs[:ROWS])
            except ModelError:
                raise
            except (Exception, SystemExit) as error:  # a user's code may raise anything
                raised = error
                continue
            taken.append(inputs)
            gradients = [gradient for gradient in found if gradient is not None]
            if all(bool(gradient.isfinite().all()) for gradient in gradients):
                is_finite = True
                if any(bool(gradient.any()) for gradient in gradients):
                    return inputs
        if not taken:
            shape = f"[{ROWS}, {self.spec.features}]"
            self._refuse(f"cannot take inputs {shape}: {reason_of(raised)}", raised)
        if is_finite:
            self._refuse(
                "never learns: the gradient of every parameter is zero. Do the outputs depend on "
                "them, through operations that can be differentiated?"
            )
        _warn(f"{self.name} has no finite gradient on the inputs that were tried")
        return taken[0]

    def _gradients(self, inputs: Tensor) -> Sequence[Tensor | None]:
        module = copy.deepcopy(self.module).train()
        before = _held(module)
        learned = {k: p for k, p in module.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            given = inputs.clone()
            outputs = self._checked(module(given), len(inputs), "in training mode")
            self.writes_inputs |= not same(given, inputs)
            if not outputs.requires_grad:
                self._refuse(
                    f"returns {self._called} without a gradient: remove torch.no_grad, .detach and "
                    ".data from its forward"
                )
            error = self._error(outputs.detach())
            gradients = torch.autograd.grad(
                outputs, list(learned.values()), error, allow_unused=True
            )
        for key, gradient in zip(learned, gradients, strict=True):
            if gradient is not None and gradient.layout != torch.strided:
                self._refuse(
                    f"has a sparse gradient of {key!r}: create its layer with sparse=False"
                )
        self._check_kept(module, before)
        return gradients

    def _error(self, outputs: Tensor) -> Tensor:
        """Return the gradient of the loss by outputs, fp32 [n, outputs]."""
        held = self.loss.fresh(1, self.device)
        return self.loss.judge(held, outputs.t()[None].clone(), self._labels).error[0].t()

    @property
    def _called(self) -> str:
        """The name of the outputs."""
        return "logits" if self.spec.predicts.kind == "multiclass" else "outputs"

    def _checked(self, outputs: object, n: int, when: str) -> Tensor:
        """Return what a forward has returned, if these are outputs of the task."""
        shape, called = f"[{n}, {self.spec.features}]", self._called
        expected = f"expected {called} [{n}, {self._outputs}]"
        if not isinstance(outputs, Tensor):
            kind = type(outputs).__name__
            self._refuse(f"maps {shape} to a {kind} {when}, {expected}: return the {called} alone")
        if outputs.shape != (n, self._outputs):
            found = list(outputs.shape)
            self._refuse(f"maps {shape} to {found} {when}, {expected}{self._hint(found, n)}")
        if outputs.dtype != torch.float32:
            self._refuse(
                f"returns {called} of {outputs.dtype} {when}, expected float32: return "
                f"{called}.float()"
            )
        return outputs

    def _hint(self, found: list[int], n: int) -> str:
        """Return what to do about outputs of another shape."""
        task = self.spec.predicts
        if task.kind == "multiclass":
            return ""
        if found == [n]:
            return ": keep the last dimension, which squeeze removes"
        each = "one for each quantile" if task.quantiles else "one for each example"
        return (
            f": FUNNEL_TASK={task} takes {each}, so end in a layer of as many outputs as the "
            f"parameter classes says, which is {self._outputs} here"
        )

    def _check_kept(self, module: nn.Module, before: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Check that a forward has replaced no tensor, and changed none that it must not."""
        now = _tensors(module)
        parameters = dict(module.named_parameters())
        for key, (tensor, old) in before.items():
            if now.get(key) is not tensor or tensor.shape != old.shape:
                self._refuse(
                    f"replaces {key!r} in its forward, where a checkpoint cannot follow: change it "
                    f"in place and keep its shape, as in self.{key}.copy_(…)"
                )
            if same(tensor, old):
                continue
            if not module.training:
                self._refuse(
                    f"changes {key!r} in evaluation mode: a prediction must change nothing, so ask "
                    "for self.training first"
                )
            if key in parameters:
                self._refuse(
                    f"changes the parameter {key!r} in its forward, which only the optimizer may "
                    "do: compute with a clamped or scaled copy of it"
                )

    def _evaluate(self, inputs: Tensor) -> None:
        """Predict as a service does: in evaluation mode, in inference mode, with other examples."""
        module = copy.deepcopy(self.module).eval()
        before, drawn = _held(module), torch.get_rng_state()
        whole = self._predicted(module, inputs[:ROWS])
        if not torch.equal(drawn, torch.get_rng_state()):
            self._refuse(
                "draws or seeds random numbers in evaluation mode, where each prediction would "
                "disturb the draws of learning: pass training=self.training, as in "
                "F.dropout(x, p, self.training)"
            )
        self._check_kept(module, before)
        alone = torch.cat([self._predicted(module, row[None]) for row in inputs[:ROWS]])
        scale = float(whole.abs().nan_to_num(0.0, 0.0).max())
        if not torch.allclose(alone, whole, TOLERANCE, TOLERANCE * scale + 1e-6, equal_nan=True):
            self._refuse(
                "gives an example other outputs in evaluation mode when it comes with other "
                "examples, as a prediction does: rows of its input are examples, not steps of a "
                "sequence. Is it an nn.RNN, nn.LSTM or nn.MultiheadAttention without "
                "batch_first=True?"
            )

    def _predicted(self, module: nn.Module, inputs: Tensor) -> Tensor:
        try:
            with torch.inference_mode():
                outputs = module(given := inputs.clone())
                self.writes_inputs |= not same(given, inputs)
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            shape = f"[{len(inputs)}, {self.spec.features}]"
            self._refuse(f"cannot predict inputs {shape}: {reason_of(error)}", error)
        return self._checked(outputs, len(inputs), "in evaluation mode")

    def _try_one_example(self, inputs: Tensor) -> None:
        """Learn a batch of one, which may be skipped."""
        try:
            copy.deepcopy(self.module).train()(inputs[:1].clone())
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            _warn(
                f"{self.name} raises on a single example, as nn.BatchNorm1d does "
                f"({reason_of(error)}); batches of one will be skipped: raise --max-wait-ms, so "
                "that batches fill up"
            )

    def _resume(self, experts: Sequence[Expert], inputs: Tensor) -> None:
        """Learn, predict, and resume from a copied state as from a checkpoint; compare the bits."""
        batches = inputs.split(ROWS)
        try:
            pool = self._pool(experts)
            self._step(pool, 0, batches[0])
            saved = {name: tensor.clone() for name, tensor in pool.tensors().items()}
            expected = self._continue(pool, batches, seed=0)
            del pool
            again = [self._resumed(experts, saved, batches, seed) for seed in (1, 0)]
        except ModelError:
            raise
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            self._refuse(
                f"cannot be learned or predicted from: {reason_of(error)}. Does it keep tensors "
                "in attributes? Register them as buffers, and change them in place",
                error,
            )
        if all(map(same, expected, again[0])):
            return
        if all(map(same, expected, again[1])):
            self._refuse(
                "draws from numpy's or Python's random numbers, so that a resumed state would "
                f"continue otherwise: {TORCH_ONLY}"
            )
        if self.device.type == "cuda":
            repeated = self._resumed(experts, saved, batches, seed=0)
            if not all(map(same, again[1], repeated)):
                _warn(f"{self.name} gives other bits each time on {self.device}: replay may differ")
                return
        self._refuse(
            "continues otherwise after a restart: it holds state that is not in its buffers, or "
            "draws from a generator of its own. Register each tensor that its forward keeps with "
            f"register_buffer and change it in place, as in self.mean.copy_(…), and {TORCH_ONLY}"
        )

    def _pool(self, experts: Sequence[Expert]) -> Pool:
        module = copy.deepcopy(self.module).train()
        return Pool(module, self.spec.features, experts, loss=self.loss)

    def _resumed(
        self,
        experts: Sequence[Expert],
        saved: dict[str, Tensor],
        batches: Sequence[Tensor],
        seed: int,
    ) -> list[Tensor]:
        pool = self._pool(experts)
        with torch.no_grad():
            for name, tensor in pool.tensors().items():
                tensor.copy_(saved[name])
        return self._continue(pool, batches, seed)

    def _continue(self, pool: Pool, batches: Sequence[Tensor], seed: int) -> list[Tensor]:
        """Take the steps after the first; return losses, a prediction and the state."""
        seed_generators(seed)
        found = [self._step(pool, k, batches[k]) for k in range(1, len(batches))]
        count = len(pool.experts)
        models = Experts(pool.models.unused, count, self.spec.features, self.loss)
        with torch.inference_mode():
            outputs = models.outputs(pool.parameters, pool.buffers, batches[0])
            found.append(predicted(pool.loss, pool.held, pool.mixing.log_weights, outputs).clone())
        return found + [tensor.clone() for tensor in pool.tensors().values()]

    @torch.no_grad()
    def _step(self, pool: Pool, number: int, inputs: Tensor) -> Tensor:
        """Take a step as a fold does; return each expert's losses [K, n]."""
        torch.manual_seed(number)
        scored = pool.score(inputs, self._labels)
        keep = scored.healthy.any()
        decision = pool.decide(scored, keep)
        if keep or self.device.type != "cpu":
            pool.update(inputs, self._labels, decision)
        return scored.expert_losses


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, the tensors themselves."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _held(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return parameters and buffers by name, each with a copy of its values."""
    return {name: (t, t.detach().clone()) for name, t in _tensors(module).items()}


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def extent(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and of the byte after its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()


def seed_generators(seed: int) -> None:
    """Seed numpy's and Python's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that a user's module may draw from


@contextmanager
def generators_kept() -> Iterator[None]:
    """Give numpy's and Python's global generators their states back."""
    numbers = random.getstate()
    arrays = np.random.get_state()  # noqa: NPY002 - the generator of users' modules
    try:
        yield
    finally:
        np.random.set_state(arrays)  # noqa: NPY002
        random.setstate(numbers)


@functools.cache
def _warn(message: str) -> None:
    """Log a message once, although every learner tries such a model."""
    logger.warning(message)
