"""Experts that take several steps a batch."""

from dataclasses import replace

import pytest
import torch

from funnel import Pool
from tests.funnel.test_pool import CLASSES, EXPERTS, FEATURES, KEEP, batches, learn, made

STEPS = 4


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_several_steps_a_batch_are_as_many_batches(name: str, on_host: bool) -> None:
    cut = Pool(made(name), FEATURES, [replace(EXPERTS[0], steps=STEPS)])
    whole = Pool(made(name), FEATURES, [EXPERTS[0]])
    cut.on_host = whole.on_host = on_host
    for inputs, labels in batches(12):
        learn(cut, inputs, labels)
        for piece, theirs in zip(inputs.chunk(STEPS), labels.chunk(STEPS), strict=True):
            learn(whole, piece, theirs)
    expected = whole.tensors()
    for key, tensor in cut.tensors().items():
        if not key.startswith("mixing."):
            torch.testing.assert_close(tensor, expected[key], msg=key)


def test_experts_beside_those_of_several_steps_are_what_they_are_alone() -> None:
    both = Pool(made("logistic"), FEATURES, [EXPERTS[0], replace(EXPERTS[0], steps=STEPS)])
    alone = Pool(made("logistic"), FEATURES, [EXPERTS[0]])
    for batch in batches(12):
        learn(both, *batch)
        learn(alone, *batch)
    for parameter, expected in zip(
        both.parameters.values(), alone.parameters.values(), strict=True
    ):
        torch.testing.assert_close(parameter[:1], expected)
        assert not torch.allclose(parameter[1:], expected)


def test_a_batch_of_fewer_examples_than_steps_is_learned() -> None:
    pool = Pool(made("logistic"), FEATURES, [replace(EXPERTS[0], steps=STEPS)])
    learn(pool, torch.randn(2, FEATURES), torch.arange(2))
    assert int(pool.state.step[0]) == 2


@pytest.mark.parametrize("name", ["tanh", "batchnorm"])
def test_modules_that_may_look_at_the_whole_batch_take_one_step(name: str) -> None:
    pool = Pool(made(name), FEATURES, [replace(EXPERTS[0], steps=STEPS)])
    learn(pool, *next(batches(1)))
    assert int(pool.state.step[0]) == 1


@pytest.mark.parametrize("keep", [True, False])
def test_a_batch_that_is_not_learned_moves_nobody(keep: bool) -> None:
    pool = Pool(made("logistic"), FEATURES, [replace(EXPERTS[0], steps=STEPS)])
    pool.on_host = False  # as on a GPU: the step is taken, masked
    learn(pool, *next(batches(1)))
    before = {name: p.clone() for name, p in pool.parameters.items()}
    inputs, labels = torch.randn(8, FEATURES), torch.arange(8) % CLASSES
    if keep:
        inputs[3, 0] = torch.nan
    seen = pool.observe(inputs, labels)
    pool.step(inputs, labels, seen.gradients, pool.weigh(seen, KEEP & keep))
    for name, parameter in pool.parameters.items():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("on_host", [False, True])
def test_an_expert_that_overflows_between_its_steps_makes_no_weight_nan(on_host: bool) -> None:
    wild = replace(EXPERTS[0], lr=1e38, steps=STEPS)
    experts = [EXPERTS[0], replace(EXPERTS[0], pull=0.1), wild]
    pool = Pool(made("logistic"), FEATURES, experts)
    pool.on_host = on_host
    found = list(batches(2))
    learn(pool, *found[0])
    assert all(parameter.isfinite().all() for parameter in pool.parameters.values())
    seen = pool.observe(*found[1])
    assert not seen.healthy[2]
    assert seen.healthy[0]
    assert seen.probabilities.isfinite().all()


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_are_a_whole_number_above_zero(steps: object) -> None:
    with pytest.raises(ValueError, match=r"Expert\.steps must be an integer of at least 1"):
        replace(EXPERTS[0], steps=steps)
