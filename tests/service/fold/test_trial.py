"""A user's module is refused at the start by name, or learned, served and replayed right."""

import itertools
import math
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from service.fold.networks import ModelError, build
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.state import State
from service.fold.step import Fold
from service.fold.task import Task
from streams.batch import Batch
from tests.service.fold import own_models
from tests.support.states import (
    CPU,
    FEATURES,
    HYPERPARAMETERS,
    a_batch,
    a_spec,
    same_tensors,
    step,
)

REFUSED = {
    "Double": "float64 in training mode, expected float32: return logits.float()",
    "Half": "float16 in training mode",
    "Brain": "bfloat16 in evaluation mode",
    "SparseGradient": "sparse gradient of 'table.weight': create its layer with sparse=False",
    "SparseBuffer": "sparse tensor 'graph'",
    "NoGrad": "without a gradient: remove torch.no_grad",
    "NeverLearns": "never learns",
    "Unused": "never learns",
    "Tuple": "to a tuple in training mode, expected logits [8, 3]: return the logits alone",
    "Mapping": "to a dict",
    "Wide": "to [8, 4] in training mode, expected logits [8, 3]",
    "Squeezed": "maps [1, 6] to [3] in evaluation mode, expected logits [1, 3]",
    "OnlyOne": "cannot take inputs [8, 6]: ValueError: one example at a time",
    "FrozenAlone": "no parameters to learn",
    "WholeNumbers": "parameter 'steps' of torch.int64, expected float32",
    "Complex": "parameter 'phase' of torch.complex64, expected float32",
    "ComplexBuffer": "buffer 'phase' of torch.complex128, which no checkpoint can hold",
    "Views": "'layer.weight' and 'other' in the same memory",
    "Growing": "replaces 'past' in its forward",
    "Reassigning": "replaces 'mean' in its forward",
    "PlainAttribute": "continues otherwise after a restart",
    "Largest": "continues otherwise after a restart",
    "OwnGenerator": "continues otherwise after a restart",
    "NumpyNoise": "numpy's or Python's random numbers",
    "PythonNoise": "numpy's or Python's random numbers",
    "NumpyStart": "starts with other values of 'layer.weight' each time",
    "AlwaysDrops": "draws or seeds random numbers in evaluation mode",
    "Counting": "changes 'calls' in evaluation mode",
    "Clamping": "changes the parameter 'layer.weight' in its forward",
    "Neighbours": "without batch_first=True?",
    "SetsDtype": "from torch.float32 to torch.float64: remove torch.set_default_dtype",
    "SetsThreads": "remove torch.set_num_threads",
    "Exits": "SystemExit: not on my watch",
    "Uncopied": "cannot be copied by copy.deepcopy",
    "Meta": "'layer.weight' is on the device meta",
    "scripted": "holds TorchScript",
    "lazy": "is lazy: the shape of '0.weight' is not known",
    "old_weight_norm": "take torch.nn.utils.parametrizations.weight_norm",
    "nothing": "returned None, expected a torch.nn.Module",
    "a_class": "returned the class Base; return a module made of it",
    "other_names": "must take the parameters features and classes",
    "fails": "failed: RuntimeError: two lines",
    "exits": "failed: SystemExit: 3",
    "number": "of type int, expected a function",
}
"""Modules and factories of `own_models`, and what their refusal says."""
TAKEN = (
    "Base", "LongShort", "Attends", "Tied", "Talks", "Keeps", "Seeds", "spectral", "weight_norm",
    "frozen_in_part", "normalized", "dropout_in_place", "leaky_in_place", "Halves",
)  # fmt: skip


TASKS = ("binary", "regression", "quantile:0.1,0.5,0.9")
TAKEN_FOR_EACH = ("Base", "LongShort", "Tied", "spectral", "normalized", "dropout_in_place")
"""Modules that learn each of these tasks: with and without buffers, draws and changed inputs."""


def own(
    model: str, optimizer: str, shadow: tuple[str, ...] = (), task: str = "multiclass"
) -> State:
    rates = replace(HYPERPARAMETERS, shadow=shadow)
    spec = a_spec(f"tests.service.fold.own_models:{model}", optimizer)
    classes = {"multiclass": spec.classes, "binary": 2}.get(task, 0)
    return State(replace(spec, task=task, classes=classes), rates, CPU)


def batch_of(task: str, seed: int) -> Batch:
    batch = a_batch(seed)
    if task == "binary":
        return Batch(batch.features, batch.labels % 2)
    if Task.parse(task).is_numeric:  # the unit moves on the way
        scale = np.float32(40.0 if seed < 6 else 1_000.0)
        return Batch(batch.features, scale * batch.features.sum(axis=1) + scale)
    return batch


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("logistic", (1 << 40, 1 << 20, ())), ("mlp", (8, 2, (1 << 60,))), ("mlp", (8, 2, (10**30,)))],
)
def test_a_model_that_memory_cannot_hold_is_refused_in_a_line(
    name: str, sizes: tuple[int, int, tuple[int, ...]]
) -> None:
    features, classes, hidden = sizes
    with pytest.raises(ModelError, match=f"there is no memory for the model {name} of"):
        build(name, features, classes, hidden, 0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("optimizer", ["pool", "funnel"])
@pytest.mark.parametrize("model", REFUSED)
def test_what_cannot_work_is_refused_by_name_in_one_line(model: str, optimizer: str) -> None:
    with pytest.raises(ModelError, match=re.escape(REFUSED[model])) as refused:
        own(model, optimizer)
    assert f"own_models:{model}" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("model", "optimizer", "task"),
    [
        *itertools.product(TAKEN, ("pool", "funnel", "adam"), ("multiclass",)),
        *itertools.product(TAKEN_FOR_EACH, ("pool",), TASKS),
    ],
)
def test_what_is_taken_learns_predicts_and_resumes_bit_for_bit(
    model: str, optimizer: str, task: str
) -> None:
    whole, resumed = (own(model, optimizer, task=task) for _ in range(2))
    start = {k: v.clone() for k, v in whole.tensors().items() if k.startswith("model.")}
    for k in range(10):
        step(whole, batch_of(task, k))
    resumed.load({k: v.clone() for k, v in whole.tensors().items()}, whole.version, whole.examples)
    for k in range(10, 20):
        step(whole, batch_of(task, k))
        step(resumed, batch_of(task, k))
    assert same_tensors(whole.tensors(), resumed.tensors())
    assert not same_tensors(start, {k: whole.tensors()[k] for k in start})
    assert int(whole.served.nonfinite) == 0
    rows = a_batch(99).features
    together = Evaluator(whole.served)(Snapshot.of(whole), rows)[1]
    size = 1.0 if whole.target is None else float(whole.target.unit[1])  # numbers are of no scale
    for row, expected in zip(rows, together, strict=True):
        alone = Evaluator(resumed.served)(Snapshot.of(resumed), row[None])[1][0]
        torch.testing.assert_close(alone / size, expected / size)


@pytest.mark.parametrize("optimizer", ["pool", "funnel"])
@pytest.mark.parametrize(
    ("model", "twin"),
    [("leaky_in_place", "leaky"), ("dropout_in_place", "dropout"), ("Halves", "HalvesACopy")],
)
def test_a_layer_in_place_changes_only_its_own_copy_of_the_inputs(
    model: str, twin: str, optimizer: str
) -> None:
    """Else shadows, the other experts and the second pass of a batch would see what it wrote."""
    mine, other = (own(name, optimizer, ("adagrad",)) for name in (model, twin))
    for k in range(30):
        step(mine, a_batch(k))
        step(other, a_batch(k))
    assert same_tensors(mine.tensors(), other.tensors())
    rows = torch.from_numpy(a_batch(99).features)
    before = rows.clone()
    mine.served.evaluator()(mine.served.frozen(), rows)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("model", ["leaky_in_place", "dropout_in_place", "Halves"])
def test_older_cuts_of_a_module_that_changes_its_inputs_are_not_replayed(model: str) -> None:
    """Until version 3 of the fold, other learners and passes saw what it wrote."""
    changing, twin = (
        Fold(State(replace(state.spec, standardize=False), HYPERPARAMETERS, CPU))
        for state in (own(model, "funnel"), own("leaky", "funnel"))
    )
    assert [changing.can_replay(version) for version in (1, 2, 3)] == [False, False, True]
    assert [twin.can_replay(version) for version in (1, 2, 3)] == [True, True, True]


OTHER_WIDTH = {
    "binary": "to [8, 2] in training mode, expected outputs [8, 1]: FUNNEL_TASK=binary takes one "
    "for each example, so end in a layer of as many outputs as the parameter classes says, "
    "which is 1",
    "regression": "expected outputs [8, 1]: FUNNEL_TASK=regression takes one for each example",
    "quantile:0.1,0.5,0.9": "to [8, 4] in training mode, expected outputs [8, 3]: "
    "FUNNEL_TASK=quantile:0.1,0.5,0.9 takes one for each quantile",
}
"""What the refusal of a module with one output too many says."""


@pytest.mark.parametrize("task", TASKS)
def test_outputs_of_another_width_than_the_tasks_are_refused_with_what_to_do(task: str) -> None:
    with pytest.raises(ModelError, match=re.escape(OTHER_WIDTH[task])):
        own("Wide", "pool", task=task)


def test_a_module_that_squeezes_its_one_output_is_told_to_keep_the_dimension() -> None:
    with pytest.raises(ModelError, match=re.escape("to [8] in training mode, expected outputs")):
        own("Squeezed", "pool", task="regression")
    with pytest.raises(ModelError, match="keep the last dimension, which squeeze removes"):
        own("Squeezed", "pool", task="regression")


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_at_which_a_module_of_any_task_raises_is_skipped(task: str) -> None:
    state = own("normalized", "pool", ("adagrad",), task)
    for k in range(3):
        step(state, batch_of(task, k))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    one = batch_of(task, 3)
    assert math.isnan(step(state, Batch(one.features[:1], one.labels[:1])).loss)
    after = state.tensors()
    changed = {k for k in before if not same_tensors({k: before[k]}, {k: after[k]})}
    assert {k.rpartition(".")[2] for k in changed} == {"nonfinite"}
    assert math.isfinite(step(state, batch_of(task, 4)).loss)


def test_a_module_need_not_take_inputs_below_zero() -> None:
    """Indices, for example, which `nn.Embedding` looks up."""
    assert not own("Embedded", "pool").served.is_plain


@pytest.mark.parametrize("model", ["normalized", "dropout", "Talks"])
def test_a_trial_leaves_no_trace(model: str) -> None:
    torch.manual_seed(5)
    numpys = np.random.get_state
    generators = torch.get_rng_state(), random.getstate(), repr(numpys())
    state = own(model, "pool", ("adagrad",))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), repr(numpys())) == generators[1:]
    spec = state.spec
    module = build(spec.model, spec.features, spec.classes, spec.hidden, spec.seed)
    for learner in state.learners().values():
        held = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, tensor in held.items():
            for one in learner.tensors()[f"model.{name}"]:
                assert torch.equal(one, tensor)
    assert int(state.served.nonfinite) == state.version == 0


def test_shadows_are_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A running model may get another shadow, whose optimizer has not been tried."""
    state = own("Base", "funnel")
    monkeypatch.setattr(own_models.Base, "forward", lambda self, x: x.detach()[:, :3])
    with pytest.raises(ModelError, match="without a gradient"):
        state.set_hyperparameters(replace(HYPERPARAMETERS, shadow=("adam",)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory on the path of imports, as the command line sets it up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


NETWORK = (
    "from torch import nn\ndef network(features, classes): return nn.Linear(features, classes)\n"
)
"""The file of a user's model."""


@pytest.mark.parametrize(
    ("name", "text", "messages"),
    [
        ("broken", "def network(features, classes:\n", ["never closed", "broken.py, line 1"]),
        ("raises", "x = 1\ny = x / 0\n", ["ZeroDivisionError: division", "raises.py, line 2"]),
        ("exits", "import sys\nsys.exit(3)\n", ["SystemExit: 3", "exits.py, line 2"]),
        ("needs", "import nowhere_to_be_found\n", ["'nowhere_to_be_found'", "needs.py, line 1"]),
        ("other", "x = 1\n", ["other.py has no 'network'"]),
        ("relative", "from . import other\n", ["ImportError: attempted relative import", "line 1"]),
        ("threads", f"import torch\ntorch.set_num_threads(63)\n{NETWORK}", ["set_num_threads"]),
        ("doubles", f"import torch\ntorch.set_default_dtype(torch.float64)\n{NETWORK}", ["dtype"]),
        ("queue", NETWORK, ["queue.py has no 'network'", "hides your", "rename yours"]),
        ("sys", NETWORK, ["Python's own module 'sys' has no 'network'", "sys.py: rename yours"]),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_is_named_with_the_line(
    name: str, text: str, messages: list[str], folder: Path
) -> None:
    (folder / f"{name}.py").write_text(text)
    with pytest.raises(ModelError) as refused:
        build(f"{name}:network", FEATURES, 3, (), 0)
    assert f"{name}:network" in str(refused.value)
    assert "\n" not in str(refused.value)
    for message in messages:
        assert message in str(refused.value)
    assert torch.get_default_dtype() == torch.float32


def test_a_missing_module_says_where_it_was_looked_for(folder: Path) -> None:
    with pytest.raises(ModelError, match=f"no module named 'nowhere'; it is neither in {folder}"):
        build("nowhere.nets:network", FEATURES, 3, (), 0)
    (folder / "queue").mkdir()
    (folder / "queue" / "nets.py").write_text(NETWORK)
    with pytest.raises(ModelError, match=r"queue\.py hides your .*queue: rename yours"):
        build("queue.nets:network", FEATURES, 3, (), 0)


def test_a_file_that_another_hides_is_named_even_if_the_other_will_do(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "own_nets.py").write_text(NETWORK)
    build("own_nets:network", FEATURES, 3, (), 0)
    assert not caplog.records
    (folder / "torch").mkdir()
    (folder / "torch" / "nn.py").write_text(NETWORK)
    with pytest.raises(ModelError):
        build("torch.nn:Identity2", FEATURES, 3, (), 0)
    (folder / "fractions.py").write_text(NETWORK)
    with pytest.raises(ModelError, match="failed"):
        build("fractions:Fraction", FEATURES, 3, (), 0)
    assert "fractions.py hides your" in caplog.text


def test_a_package_may_import_its_own_modules_by_relative_names(folder: Path) -> None:
    package = folder / "shop_nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text("from torch import nn\nLayer = nn.Linear\n")
    (package / "nets.py").write_text(
        "from .layers import Layer\n\n\ndef network(features, classes):\n"
        "    return Layer(features, classes)\n"
    )
    assert build("shop_nets.nets:network", FEATURES, 3, (), 0)
