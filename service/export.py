"""A learned model as a module of torch, and in ONNX: the same answers without Funnel's learning."""

import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from funnel.pool.backprop import expert_outputs
from funnel.pool.loss import Gaussian, Pinball
from funnel.pool.pool import predicted
from service.fold.calibration import calibrated
from service.fold.inputs import MAX_INPUT, completed
from service.fold.learner import WEIGHTS, Learner, held_of
from service.fold.optimizers import loss_for
from service.fold.schema.keys import missing_key
from service.fold.schema.kinds import Kind
from service.fold.schema.schema import Schema
from service.fold.snapshot import Snapshot
from service.fold.standardizer import standardized
from service.fold.target import answered
from service.fold.task import Task
from streams.errors import FunnelError

OPSET = 18
ABOUT = "funnel"
"""Name of the description in the header of a file."""
FORMATS = ("onnx", "torch", "safetensors")


class ExportError(FunnelError, ValueError):
    """A model that cannot be exported, or a file that holds none; the message says why."""


class About(BaseModel):
    """A description of an exported model, without its tensors."""

    model_config = ConfigDict(frozen=True)

    version: int
    """Version of the model that was exported."""
    task: str
    """The text of a `service.fold.task.Task`."""
    columns: tuple[str, ...]
    """Names of the inputs, in their order; empty for dense features, which have none."""
    labels: tuple[str, ...]
    """Canonical text of each output's class; empty for numbers and for classes by number."""
    layers: tuple[str, ...]
    """Names of the tensors of the layers, in order."""
    held: tuple[str, ...]
    """Names of all tensors of the experts and of their mixture."""
    no_change: bool
    """True if the last known label is an expert."""
    can_close: bool
    """True if there is room for classes that were not seen yet."""
    classes: int
    """Number of classes that are open."""

    @property
    def output(self) -> str:
        """Name of the output."""
        return "answers" if Task.parse(self.task).is_numeric else "probabilities"


class Exported(nn.Module):
    """Answers as a version of a model did; nothing changes it.

    Its inputs are fp32 [n, d]: the columns of rows in their order, where NaN is a missing value, or
    dense features, with uint8 scaled to [0, 1]. Its outputs are fp32: probabilities [n, classes],
    or mean and standard deviation [n, 2], or quantiles [n, Q].

    Args:
        about: describes it.
        tensors: as `of` makes them.
    """

    def __init__(self, about: About, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.about, task = about, Task.parse(about.task)
        self._loss = loss_for(task, about.no_change, about.can_close)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @classmethod
    def of(cls, snapshot: Snapshot, learner: Learner, order: Sequence[int] | None = None) -> Self:
        """Return the module of a snapshot.

        Args:
            snapshot: of a linear model or a network whose columns are all numbers.
            learner: whose snapshot it is.
            order: the class of each output, if it is not its place.

        Raises:
            ExportError: the model has other families or columns, which the message names.
        """
        if learner.families is not None:
            raise ExportError(
                "trees, neighbours and frequencies of labels cannot be exported: they answer from "
                "the rows that they remember. Use the model 'logistic' or 'mlp'"
            )
        if not learner.is_plain:
            raise ExportError("a module of your own cannot be exported: it is code")
        schema, weights = snapshot.schema, snapshot.weights
        if schema is None:
            dense: Sequence[int] = range(next(iter(weights.values())).shape[2])
            names: tuple[str, ...] = ()
            labels: tuple[str, ...] = ()
            count = snapshot.classes
        else:
            _check_columns(schema)
            dense = schema.dense
            names = tuple(column.name for column in schema.columns)
            labels, count = schema.labels, len(schema.labels)
        if snapshot.task.is_numeric:
            order, labels = (), ()
        elif order is None:
            order = range(count)
        about = About(
            version=snapshot.version,
            task=str(snapshot.task),
            columns=names,
            labels=tuple(labels[k] for k in order) if labels else (),
            layers=tuple(learner.pool.parameters),
            held=tuple(weights),
            no_change=learner.spec.no_change,
            can_close=bool(learner.spec.schema),
            classes=snapshot.classes,
        )
        optional = {
            "mean": snapshot.mean,
            "scale": snapshot.scale,
            "unit": snapshot.unit,
            "calibration": snapshot.calibration,
        }
        tensors = {f"held_{k}": tensor.cpu() for k, tensor in enumerate(weights.values())}
        tensors |= {name: tensor.cpu() for name, tensor in optional.items() if tensor is not None}
        tensors["places"] = torch.tensor(list(dense), dtype=torch.int64)
        tensors["order"] = torch.tensor(list(order), dtype=torch.int64)
        tensors["missing"] = _missing_weights(snapshot, [names[k] for k in dense] if names else [])
        return cls(about, tensors)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Return the module that `to_bytes` has written.

        Raises:
            ExportError: the bytes are no such module.
        """
        try:
            tensors = load(raw)
            size = int.from_bytes(raw[:8], "little")
            about = About.model_validate_json(_metadata(raw[8 : 8 + size])[ABOUT])
        except (SafetensorError, ValidationError, KeyError, ValueError) as error:
            raise ExportError(f"these bytes are no exported model: {error}") from error
        return cls(about, tensors)

    def to_bytes(self) -> bytes:
        """Return the module as safetensors, with its description in the header."""
        tensors = {name: tensor.contiguous() for name, tensor in self.named_buffers()}
        raw: bytes = save(tensors, {ABOUT: self.about.model_dump_json()})
        return raw

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in their order."""
        return self.about.columns

    @property
    def width(self) -> int:
        """Number of inputs, d."""
        return len(self.names) or len(self.get_buffer("places"))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the answers for inputs, fp32 [n, d]."""
        about, found = self.about, dict(self.named_buffers())
        weights = {name: found[f"held_{k}"] for k, name in enumerate(about.held)}
        dense = inputs[:, found["places"]].clamp(-MAX_INPUT, MAX_INPUT)
        is_missing = dense.isnan().float()
        if "mean" in found:
            dense = standardized(dense, found["mean"], found["scale"])
        first, *others = (weights[name] for name in about.layers)
        dense = torch.cat([completed(dense, first.shape[2]), is_missing], dim=1)
        wide = torch.cat([first, found["missing"]], dim=2)
        outputs = expert_outputs([wide, *others], dense)
        answers = predicted(self._loss, held_of(weights), weights[WEIGHTS], outputs)
        if "unit" in found:
            assert isinstance(self._loss, Gaussian | Pinball), "numbers have a loss of numbers"
            return answered(answers, found["unit"], self._loss.has_deviation)
        if "calibration" in found:
            labels = self._loss.chosen(outputs, answers)
            answers = calibrated(about.classes, answers, labels, found["calibration"])
        return answers[:, found["order"]]

    def in_format(self, form: str) -> bytes:
        """Return the module in a format, one of `FORMATS`.

        Raises:
            ExportError: the packages for ONNX are missing.
        """
        match form:
            case "onnx":
                return _to_onnx(self)
            case "torch":
                return _to_program(self)
        return self.to_bytes()


def _check_columns(schema: Schema) -> None:
    """Check that all columns are numbers.

    Raises:
        ExportError: one is not; the message names it.
    """
    for column in schema.columns:
        if column.kind is not Kind.NUMBER:
            kind = "has no value yet" if column.kind is None else f"is a {column.kind.value}"
            raise ExportError(
                f"column {column.name!r} {kind}: only numbers can be exported. Encode it before"
            )


def _metadata(header: bytes) -> dict[str, str]:
    """Return the metadata in a header of safetensors."""
    found: dict[str, str] = json.loads(header)["__metadata__"]
    return found


def _missing_weights(snapshot: Snapshot, names: Sequence[str]) -> Tensor:
    """Return what a missing value adds to the first layer, [K, out, d]; 0 if none was learned."""
    table = snapshot.table
    first = next(iter(snapshot.weights.values())).cpu()
    found = first.new_zeros(first.shape[0] * first.shape[1], len(names) or first.shape[2])
    if table is not None:
        rows = table.index.find(np.array([missing_key(name) for name in names], np.uint64))
        known = np.flatnonzero((rows >= 0) & (rows < table.used))
        if len(known):
            found[:, torch.from_numpy(known)] = table.columns(rows[known])
    each: Tensor = found.unflatten(0, first.shape[:2])
    return each


def _to_onnx(module: Exported) -> bytes:
    """Return a module in ONNX, with the input ``inputs``, fp32 [n, d].

    Raises:
        ExportError: onnx or onnxscript are missing.
    """
    if find_spec("onnxscript") is None:  # torch needs it
        raise ExportError("ONNX needs onnxscript: pip install 'funnel-stream[onnx]'")
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            (torch.zeros(2, module.width),),
            input_names=["inputs"],
            output_names=[module.about.output],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    assert program is not None, "dynamo returns a program"
    model = program.model_proto
    model.metadata_props.add(key="columns", value="\n".join(module.names))
    model.metadata_props.add(key=ABOUT, value=module.about.model_dump_json())
    raw: bytes = model.SerializeToString()
    return raw


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from warning of its own code, and of torchvision, which is not used."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _to_program(module: Exported) -> bytes:
    """Return a module as a program that ``torch.export.load`` opens without this package."""
    sizes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(
        module.eval(), (torch.zeros(2, module.width),), dynamic_shapes=sizes
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={ABOUT: module.about.model_dump_json()})
    return buffer.getvalue()
