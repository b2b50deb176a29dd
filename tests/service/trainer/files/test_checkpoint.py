"""Checkpoints: any damage is found, and a state that was loaded goes on bit for bit."""

from dataclasses import replace

import pytest
import torch

from service.fold.state import State
from service.trainer import checkpoint
from service.trainer.checkpoint import Checkpoint, DamagedError, NewerError, decode, encode
from tests.support.checkpoints import NUMERICS, PROGRESS, a_copy
from tests.support.states import CPU, a_batch, a_state, same_tensors, step


def test_a_state_that_was_loaded_goes_on_bit_for_bit() -> None:
    whole = a_state()
    for k in range(6):
        step(whole, a_batch(k))
    copy = a_copy(3)
    resumed = a_state()
    resumed.load(copy.tensors, copy.version, copy.examples)
    for k in range(3, 6):
        step(resumed, a_batch(k))
    assert same_tensors(resumed.tensors(), whole.tensors())
    assert Checkpoint.of(resumed, PROGRESS).sha256() == Checkpoint.of(whole, PROGRESS).sha256()


def test_a_copy_stays_as_it_was_while_the_state_learns_on() -> None:
    state = a_state()
    step(state, a_batch(0))
    copy = Checkpoint.of(state, PROGRESS)
    before = copy.sha256()
    step(state, a_batch(1))
    assert copy.sha256() == before


def test_the_digest_is_of_the_state_and_nothing_else() -> None:
    copy = a_copy()
    elsewhere = replace(PROGRESS, log="other", epoch=9, cut=99, entries=1)
    assert a_copy(progress=elsewhere).sha256() == copy.sha256()
    assert encode(copy, copy.sha256(), NUMERICS) == encode(a_copy(), copy.sha256(), NUMERICS)
    for name in (k for k, v in copy.tensors.items() if v.numel()):
        tensors = {k: v.clone() for k, v in copy.tensors.items()}
        tensors[name].view(-1)[:1].view(torch.uint8)[0] ^= 1
        assert replace(copy, tensors=tensors).sha256() != copy.sha256(), name
    assert replace(copy, version=4).sha256() != copy.sha256()
    faster = replace(copy.hyperparameters, lr=0.5)
    assert replace(copy, hyperparameters=faster).sha256() != copy.sha256()


def test_the_digest_knows_shapes() -> None:
    copy = a_copy()
    weight = copy.tensors["model.weight"]
    turned = copy.tensors | {"model.weight": weight.reshape(weight.shape[::-1])}
    assert replace(copy, tensors=turned).sha256() != copy.sha256()


def test_a_format_of_a_later_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    copy, later = a_copy(), checkpoint.FORMAT + 1
    monkeypatch.setattr(checkpoint, "WHOLE", later)
    raw = encode(copy, copy.sha256(), NUMERICS)
    with pytest.raises(NewerError, match=rf"in format {later}; .*: upgrade it"):
        decode(raw)


def a_short_copy() -> Checkpoint:
    """Return a checkpoint of some tensors: the others are bytes as these are."""
    whole = a_copy()
    names = [name for name in whole.tensors if not name.endswith("ring")][:12]
    return replace(whole, tensors={name: whole.tensors[name] for name in names})


def test_every_flipped_bit_is_found() -> None:
    copy = a_short_copy()
    raw = encode(copy, copy.sha256(), NUMERICS)
    header = 8 + int.from_bytes(raw[:8], "little")
    places = [*range(0, 8 * header), *range(8 * header, 8 * len(raw), 97)]
    for place in places:
        damaged = bytearray(raw)
        damaged[place // 8] ^= 1 << (place % 8)
        with pytest.raises(DamagedError):
            decode(bytes(damaged))


def test_a_file_cut_short_is_found() -> None:
    copy = a_short_copy()
    raw = encode(copy, copy.sha256(), NUMERICS)
    for length in range(0, len(raw), 53):
        with pytest.raises(DamagedError):
            decode(raw[:length])
    with pytest.raises(DamagedError):
        decode(raw + b"\0")


def test_a_state_of_other_shapes_is_refused_whole() -> None:
    copy, state = a_copy(), a_state()
    before = {k: v.clone() for k, v in state.tensors().items()}
    for tensors in (
        {k: v for k, v in copy.tensors.items() if k != "model.bias"},
        copy.tensors | {"model.bias": torch.zeros(99)},
        copy.tensors | {"model.bias": copy.tensors["model.bias"].double()},
    ):
        with pytest.raises(ValueError, match=r"model\.bias"):
            state.load(tensors, 1, 1)
    assert same_tensors(state.tensors(), before)
    assert isinstance(State(state.spec, state.hyperparameters, CPU), State)


def test_a_state_of_other_drift_is_refused_whole() -> None:
    copy, state = a_copy(), a_state()
    before = {k: v.clone() for k, v in state.tensors().items()}
    with pytest.raises(ValueError, match="drift"):
        state.load(copy.tensors | {"drift.counts": torch.zeros(2)}, 1, 1)
    assert same_tensors(state.tensors(), before)
