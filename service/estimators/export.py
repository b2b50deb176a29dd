"""A learned model as a module of torch, and in ONNX: the same answers without Funnel's learning."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from funnel.pool.backprop import expert_outputs
from funnel.pool.loss import Gaussian, Pinball
from funnel.pool.pool import predicted
from service.fold.calibration import calibrated
from service.fold.inputs import MAX_INPUT, completed
from service.fold.learner import WEIGHTS, held_of
from service.fold.schema.keys import missing_key
from service.fold.schema.kinds import Kind
from service.fold.snapshot import Snapshot
from service.fold.standardizer import standardized
from service.fold.state import State
from service.fold.target import restored
from streams.errors import FunnelError

OPSET = 18


class ExportError(FunnelError, ValueError):
    """A model that cannot be exported; the message says why."""


class Exported(nn.Module):
    """Answers as a version of a model did; nothing changes it.

    Its inputs are fp32 [n, d], the columns ``names`` in their order; NaN is a missing value. Its
    outputs are fp32: probabilities [n, classes], or mean and standard deviation [n, 2], or
    quantiles [n, Q].

    Args:
        state: of a linear model or a network whose columns are all numbers.
        order: the index of each output's class in the schema; None for numbers.

    Raises:
        ExportError: the model has other families or columns, which the message names.
    """

    _mean: Tensor | None
    _scale: Tensor | None
    _unit: Tensor | None
    _calibration: Tensor | None

    def __init__(self, state: State, order: Sequence[int] | None) -> None:
        super().__init__()
        if state.served.families is not None:
            raise ExportError(
                "trees, neighbours and frequencies of labels cannot be exported: they answer from "
                "the rows that they remember. Use the model 'logistic' or 'mlp'"
            )
        schema = state.schema
        for column in schema.columns:
            if column.kind is not Kind.NUMBER:
                kind = "has no value yet" if column.kind is None else f"is a {column.kind.value}"
                raise ExportError(
                    f"column {column.name!r} {kind}: only numbers can be exported. Encode it before"
                )
        snapshot = Snapshot.of(state)
        self.names = tuple(column.name for column in schema.columns)
        self._width, self._loss = state.size.features, state.served.pool.loss
        self._classes, self._layers = snapshot.classes, list(state.served.pool.parameters)
        self._held = list(snapshot.weights)
        for k, tensor in enumerate(snapshot.weights.values()):
            self.register_buffer(f"_held_{k}", tensor)
        dense = [self.names[column] for column in schema.dense]
        self.register_buffer("_places", torch.tensor(schema.dense))
        self.register_buffer("_missing", _missing_weights(snapshot, dense))
        self.register_buffer("_mean", snapshot.mean)
        self.register_buffer("_scale", snapshot.scale)
        self.register_buffer("_unit", snapshot.unit)
        self.register_buffer("_calibration", snapshot.calibration)
        self.register_buffer("_order", None if order is None else torch.tensor(order))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the answers for inputs, fp32 [n, d]."""
        dense = inputs[:, self._buffer("_places")].clamp(-MAX_INPUT, MAX_INPUT)
        is_missing = dense.isnan().float()
        if self._mean is not None and self._scale is not None:
            dense = standardized(dense, self._mean, self._scale)
        dense = torch.cat([completed(dense, self._width), is_missing], dim=1)
        weights = {name: self._buffer(f"_held_{k}") for k, name in enumerate(self._held)}
        first, *others = (weights[name] for name in self._layers)
        wide = torch.cat([first, self._buffer("_missing")], dim=2)
        outputs = expert_outputs([wide, *others], dense)
        held = held_of(weights)
        answers = predicted(self._loss, held, weights[WEIGHTS], outputs)
        if self._unit is not None:
            assert isinstance(self._loss, Gaussian | Pinball), "numbers have a loss of numbers"
            return restored(answers, self._unit, self._loss.has_deviation)
        if self._calibration is not None:
            labels = self._loss.chosen(outputs, answers)
            answers = calibrated(self._classes, answers, labels, self._calibration)
        return answers[:, self._buffer("_order")]

    def _buffer(self, name: str) -> Tensor:
        found = self.get_buffer(name)
        assert found is not None, "it is there"
        return found


def _missing_weights(snapshot: Snapshot, names: Sequence[str]) -> Tensor:
    """Return what a missing value adds to the first layer, [K, out, d]; 0 if none was learned."""
    table = snapshot.table
    first = next(iter(snapshot.weights.values()))
    found = first.new_zeros(first.shape[0] * first.shape[1], len(names))
    if table is not None:
        rows = table.index.find(np.array([missing_key(name) for name in names], np.uint64))
        known = np.flatnonzero((rows >= 0) & (rows < table.used))
        if len(known):
            found[:, torch.from_numpy(known)] = table.columns(rows[known])
    each: Tensor = found.unflatten(0, first.shape[:2])
    return each


def to_onnx(module: Exported, output: str) -> bytes:
    """Return a module in ONNX, with the input ``inputs``, fp32 [n, d].

    Args:
        module: to export.
        output: name of the output.

    Raises:
        ExportError: onnx or onnxscript are missing.
    """
    if find_spec("onnxscript") is None:  # torch needs it
        raise ExportError("ONNX needs onnxscript: pip install 'funnel-stream[onnx]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own code
        program = torch.onnx.export(
            module.eval(),
            (torch.zeros(2, len(module.names)),),
            input_names=["inputs"],
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    assert program is not None, "dynamo returns a program"
    model = program.model_proto
    model.metadata_props.add(key="columns", value="\n".join(module.names))
    raw: bytes = model.SerializeToString()
    return raw
