"""A model of rows on a device that is not the host's, while the rows of its table are the host's.

The device is that of `tests.support.elsewhere`, so no GPU is needed.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from funnel.graphs.captured import Captured
from service.fold.schema.names import named_keys
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.state import State
from service.log.position import Progress
from service.monitoring.features import Names, learned, reasons, strongest
from service.trainer.checkpoint import Checkpoint, decode, encode
from tests.support.elsewhere import elsewhere
from tests.support.named import a_row_spec, extend, some_rows
from tests.support.states import CPU, HYPERPARAMETERS, step

MODELS = ("logistic", "mlp")
QUESTIONS = some_rows(100, 50)


@pytest.fixture(autouse=True)
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run steps without CUDA graphs."""
    monkeypatch.setattr(Captured, "__call__", lambda self, *args: self.function(*args))


def a_state(device: torch.device, model: str = "logistic") -> State:
    rates = replace(HYPERPARAMETERS, shadow=("adagrad",))
    return State(a_row_spec(model=model), rates, device)


def learn(state: State, first: int, stop: int) -> list[float]:
    """Learn batches of rows, the later ones with a column and a class more."""
    losses = []
    for k in range(first, stop):
        rows = some_rows(k, 30, late=k > 5, classes=2 + (k > 5))
        extend(state, rows)
        losses.append(float(step(state, rows).loss))
    return losses


def answered(state: State) -> tuple[Tensor, Tensor]:
    """Return labels and probabilities; the tensors of that device know no inference mode."""
    evaluate = Evaluator(state.served)
    with torch.no_grad():
        found: tuple[Tensor, Tensor] = vars(Evaluator)["__call__"].__wrapped__(
            evaluate, Snapshot.of(state), QUESTIONS
        )
    return found


@pytest.mark.parametrize("model", MODELS)
def test_rows_are_learned_as_on_the_host(model: str) -> None:
    here = a_state(CPU, model)
    losses = learn(here, 0, 12)
    with elsewhere() as device:
        there = a_state(device, model)
        assert np.allclose(learn(there, 0, 12), losses, rtol=1e-3, atol=1e-4)
        found = answered(there)[1]
        table = there.served.table
        assert table is not None
        assert there.served.pool.device == device
        assert all(tensor.device == CPU for tensor in table.tensors().values())
    assert torch.allclose(found, answered(here)[1], rtol=1e-2, atol=1e-3)
    assert here.served.table is not None
    assert table.index.used == here.served.table.index.used > 30


@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_model_has_the_bits_of_one_that_went_on(model: str) -> None:
    with elsewhere() as device:
        state = a_state(device, model)
        learn(state, 0, 8)
        copy = Checkpoint.of(state, Progress())
        saved = decode(encode(copy, copy.sha256(), {})).copy
        again = a_state(device, model)
        again.load(saved.tensors, saved.version, saved.examples)
        for one in (state, again):
            learn(one, 8, 12)
        digests = [Checkpoint.of(one, Progress()).sha256() for one in (state, again)]
    assert digests[0] == digests[1]


def test_weights_and_reasons_are_those_of_the_host() -> None:
    here = a_state(CPU)
    learn(here, 0, 12)
    names = Names.of(named_keys(here.schema, QUESTIONS))
    with elsewhere() as device:
        there = a_state(device)
        learn(there, 0, 12)
        labels = answered(there)[0].numpy()
        found = []
        for state in (here, there):
            snapshot = Snapshot.of(state)
            features = strongest(snapshot, names, 100)
            gains = dict(zip([f.name for f in features], learned(state, features), strict=True))
            parts = {part.name for own in reasons(snapshot, QUESTIONS, labels, 3) for part in own}
            found.append((gains, parts))
    (mine, my_parts), (theirs, their_parts) = found
    assert mine.keys() == theirs.keys()
    assert [mine[k].count for k in mine] == [theirs[k].count for k in mine]
    assert my_parts == their_parts
