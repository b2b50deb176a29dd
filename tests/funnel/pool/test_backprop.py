"""The gradients written out are autograd's."""

import pytest
import torch
import torch.nn.functional as F

from funnel.pool.backprop import differentiate_experts
from service.fold import networks as models


@pytest.mark.parametrize("hidden", [(), (5,), (7, 4, 3)], ids=str)
@pytest.mark.parametrize("n", [1, 33])
def test_logits_losses_and_gradients_are_autograds(hidden: tuple[int, ...], n: int) -> None:
    module = models.build("mlp", 6, 3, hidden, seed=1).double()
    generator = torch.Generator().manual_seed(n)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double()
    inputs = torch.randn(n, 6, generator=generator).double()
    labels = torch.randint(0, 3, (n,), generator=generator)
    parameters = list(module.parameters())
    expected = module(inputs)
    losses = F.cross_entropy(expected, labels, reduction="none")
    gradients = torch.autograd.grad(losses.mean(), parameters)
    with torch.no_grad():
        mine = differentiate_experts([p[None] for p in parameters], inputs, labels)
    torch.testing.assert_close(mine.answers[0], expected.detach().softmax(dim=1))
    torch.testing.assert_close(mine.losses[0], losses.detach())
    for ours, theirs in zip(mine.gradients, gradients, strict=True):
        torch.testing.assert_close(ours[0], theirs)


def test_logits_that_are_not_finite_make_losses_that_are_not() -> None:
    layer = [torch.full((1, 3, 2), 1e38), torch.zeros(1, 3)]
    found = differentiate_experts(layer, torch.full((4, 2), 1e38), torch.zeros(4).long())
    assert found.losses.isnan().all()
