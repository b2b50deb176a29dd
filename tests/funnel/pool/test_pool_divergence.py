"""An expert that diverges loses its weight at once and comes back as a copy of the best."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from funnel import Pool
from funnel.pool.loss import CROSS_ENTROPY
from funnel.pool.pool import predicted
from tests.funnel.pool.trained_pool import EXPERTS, KEEP, batch, learn, trained


def everything(pool: Pool) -> Tensor:
    return torch.cat([t.flatten().double() for t in pool.tensors().values()])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e38])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("victims", [[1], [0, 3], [2, 3], [0, 1, 2]], ids=str)
def test_the_mixture_goes_on_without_those_and_they_restart_from_the_best(
    victims: list[int], on_host: bool, hidden: bool, poison: float
) -> None:
    pool = trained(hidden, on_host)
    for parameter in pool.parameters.values():
        parameter[victims] = poison
    others = [k for k in range(4) if k not in victims]
    inputs, _ = batch(50)
    logits = pool.models.outputs(pool.parameters, pool.buffers, inputs)
    counts = logits.softmax(dim=-1).isfinite().all(dim=-1)
    assert counts[others].all()
    assert not counts[victims].all()
    for k, mixture in enumerate(pool.predict(inputs)):
        alone = logits[counts[:, k], k].softmax(dim=-1)
        weights = pool.mixing.log_weights[counts[:, k]].softmax(dim=0)
        torch.testing.assert_close(mixture, weights @ alone)

    assert learn(pool, 9).nonzero().flatten().tolist() == victims
    best = int(pool.mixing.log_weights.argmax())
    assert best in others
    for tensor in (*pool.parameters.values(), *pool.state.log_gain, *pool.state.step):
        for k in victims:
            assert torch.equal(tensor[k], tensor[best])
    assert everything(pool).isfinite().all()
    for seed in range(10, 14):
        assert not learn(pool, seed).any()
    torch.testing.assert_close(pool.mixing.log_weights.exp().sum(), torch.tensor(1.0))


def test_an_example_without_a_finite_answer_changes_no_other_answer() -> None:
    weights = torch.tensor([0.6, 0.3, 0.1]).log()
    logits = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(0))
    expected = predicted(CROSS_ENTROPY, {}, weights, logits)
    logits[0, 3, 1] = torch.nan
    logits[:, 7] = torch.inf
    found = predicted(CROSS_ENTROPY, {}, weights, logits)
    others = [k for k in range(20) if k not in (3, 7)]
    assert torch.equal(found[others], expected[others])
    torch.testing.assert_close(found[3], torch.tensor([0.75, 0.25]) @ logits[1:, 3].softmax(-1))
    torch.testing.assert_close(found[7], torch.full((5,), 0.2))


def test_the_best_that_diverges_becomes_a_copy_of_the_next_best() -> None:
    pool = trained()
    expected = [parameter[1].clone() for parameter in pool.parameters.values()]
    who = torch.tensor([True, False, False, False])
    pool.restart.from_best(who, torch.tensor([0.5, 0.3, 0.1, 0.1]).log())
    for parameter, other in zip(pool.parameters.values(), expected, strict=True):
        assert torch.equal(parameter[0], other)


def test_the_inner_state_comes_from_the_best_of_its_kind_else_it_is_fresh() -> None:
    pool = trained()
    sums = pool.inner_state["0.sum"][0]
    pool.parameters["0.weight"][0] = torch.nan
    learn(pool, 9)
    assert torch.equal(sums[0], sums[1])
    pool.parameters["0.weight"][:2] = torch.nan
    learn(pool, 10)
    assert torch.equal(sums, torch.zeros_like(sums))


def test_healthy_experts_do_not_notice() -> None:
    pool, twin = trained(), trained()
    pool.parameters["0.weight"][2] = torch.nan
    for one in (pool, twin):
        learn(one, 9)
    for mine, theirs in zip(pool.parameters.values(), twin.parameters.values(), strict=True):
        assert torch.equal(mine[[0, 1, 3]], theirs[[0, 1, 3]])


@pytest.mark.parametrize("keep", [True, False])
def test_a_batch_at_which_all_diverge_or_that_is_held_back_changes_nothing(keep: bool) -> None:
    pool = trained(on_host=False)
    inputs, labels = batch(9)
    if keep:
        inputs[0, 0] = torch.nan
    before = everything(pool)
    seen = pool.score(inputs, labels)
    assert seen.answers.isfinite().all()
    assert seen.losses.isfinite().all() != keep
    pool.update(inputs, labels, pool.decide(seen, torch.tensor(keep)))
    counted = {k for k, v in pool.tensors().items() if k.endswith("nonfinite")}
    for name in counted:
        pool.tensors()[name].sub_(1)
    assert torch.equal(everything(pool), before)


def test_one_that_has_diverged_draws_nobody_along_while_batches_are_held_back() -> None:
    torch.manual_seed(0)
    experts = [replace(expert, pull=0.1) for expert in EXPERTS]
    pool = Pool(nn.Linear(6, 3), 6, experts)
    pool.execution = replace(
        pool.execution, on_host=False
    )  # as on a GPU: the step is taken, masked
    for seed in range(8):
        learn(pool, seed)
    pool.parameters["weight"][0] = torch.inf
    before = pool.parameters["weight"].clone()
    seen = pool.score(*batch(9))
    pool.update(*batch(9), pool.decide(seen, ~KEEP))
    assert torch.equal(pool.parameters["weight"], before)
    learn(pool, 10)
    assert everything(pool).isfinite().all()


def test_predictions_of_no_healthy_expert_are_uniform() -> None:
    logits = torch.full((4, 5, 3), torch.nan)
    assert torch.equal(
        predicted(CROSS_ENTROPY, {}, torch.zeros(4), logits), torch.full((5, 3), 1 / 3)
    )


def test_one_wild_batch_does_not_end_the_pool() -> None:
    pool = trained(hidden=True)
    inputs, labels = batch(9)
    seen = pool.score(1e18 * inputs, labels)
    pool.update(1e18 * inputs, labels, pool.decide(seen, KEEP))
    for seed in range(10, 40):
        learn(pool, seed)
    assert everything(pool).isfinite().all()
    inputs, labels = batch(77)
    assert (pool.predict(inputs).argmax(dim=1) == labels).float().mean() > 0.5
