"""What a batch brings to the device, however its numbers come."""

from dataclasses import replace

import numpy as np
import torch

from streams.batch import Batch
from tests.support.states import a_batch, a_state, same_tensors, step


def test_how_a_batch_lies_in_memory_does_not_matter() -> None:
    one, other = a_state(), a_state()
    for k in range(5):
        batch = a_batch(k)
        step(one, batch)
        step(other, replace(batch, features=np.asfortranarray(batch.features)))
    assert same_tensors(one.tensors(), other.tensors())


def test_uint8_means_a_fraction_of_255() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6)).astype(np.uint8)
    labels = a_batch(0).labels
    states = [a_state(), a_state()]
    step(states[0], Batch(pixels, labels))
    step(states[1], Batch(pixels.astype(np.float32) / np.float32(255), labels))
    torch.testing.assert_close(
        states[0].served.pool.parameters["weight"], states[1].served.pool.parameters["weight"]
    )
