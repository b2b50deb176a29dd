"""What no setting has to choose is fixed for a log's life, and recorded in it."""

from dataclasses import replace

import pytest
import torch

from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import UNSET, Spec
from service.fold.state import State
from service.log.errors import LogError
from service.log.log import Log
from service.trainer.replica import Replica
from tests.support.clock import StillClock
from tests.support.memory_log import MemoryLog, MemoryServer
from tests.support.replicas import fill, keep_lease, learn
from tests.support.states import CPU, HYPERPARAMETERS, a_batch, a_spec, same_tensors

pytestmark = pytest.mark.anyio


def a_replica(calibrate: bool, is_recorded: bool) -> Replica:
    state = State(replace(a_spec(), calibrate=calibrate), HYPERPARAMETERS, CPU)
    return Replica(state, lambda *_: None, StillClock(), is_calibration_recorded=is_recorded)


async def begun(memory: MemoryServer, log: Log, calibrate: bool) -> Replica:
    """Return a replica that has learned a batch from a new log."""
    fill(memory, 3)
    replica = a_replica(calibrate, is_recorded=False)
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    return replica


@pytest.mark.parametrize("calibrate", [False, True])
async def test_a_log_goes_on_as_it_began_unless_the_settings_say_otherwise(
    memory: MemoryServer, log: MemoryLog, calibrate: bool
) -> None:
    first = await begun(memory, log, calibrate)
    heir = a_replica(not calibrate, is_recorded=True)
    pending = await heir.recover(log, False, keep_lease)
    assert heir.state.spec.calibrate is calibrate
    assert (heir.state.calibration is not None) is calibrate
    await learn(heir, log, pending, 20)
    again = a_replica(not calibrate, is_recorded=True)
    await again.recover(log, False, keep_lease)
    one, other = heir.state.tensors(), again.state.tensors()
    assert one.keys() == other.keys() == first.state.tensors().keys()
    assert same_tensors(one, other)


@pytest.mark.parametrize("name", UNSET)
@pytest.mark.parametrize("begins", [False, True])
async def test_a_log_goes_on_with_what_it_began_with_and_no_setting_chooses(
    memory: MemoryServer, log: MemoryLog, name: str, begins: bool
) -> None:
    """A log of an earlier version does not know of the last label as an expert, for example."""

    def replica(begins: bool) -> Replica:
        spec = Spec.of(a_spec(optimizer="pool").fields() | {name: begins})
        hyperparameters = replace(HYPERPARAMETERS, shadow=("pool", "adagrad"))
        return Replica(State(spec, hyperparameters, CPU), lambda *_: None, StillClock())

    fill(memory, 6)
    first = replica(begins)
    await learn(first, log, await first.recover(log, False, keep_lease), 20)
    heir = replica(not begins)
    evaluator = Evaluator(heir.state.served)
    pending = await heir.recover(log, False, keep_lease)
    assert heir.state.spec == first.state.spec
    assert same_tensors(heir.state.tensors(), first.state.tensors())
    await learn(heir, log, pending, 20)
    rows = a_batch(99).features
    _, found = evaluator(Snapshot.of(heir.state), rows)
    _, other = Evaluator(heir.state.served)(Snapshot.of(heir.state), rows)
    assert torch.equal(found, other)


async def test_settings_that_contradict_the_log_are_refused_by_name(
    memory: MemoryServer, log: MemoryLog
) -> None:
    await begun(memory, log, calibrate=False)
    with pytest.raises(LogError, match="calibrate is False there and True here"):
        await a_replica(True, is_recorded=False).recover(log, False, keep_lease)
