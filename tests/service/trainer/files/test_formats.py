"""Scores of older checkpoint formats go on where they were."""

import pytest
import torch

from service.fold.scoring.classification import Scores
from service.trainer.formats import from_format_4

CPU = torch.device("cpu")
YES = torch.tensor(True)
OLD_RING = 1_000


def old_scores(
    labels: torch.Tensor, right: torch.Tensor, losses: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return scores as format 4 held them."""
    outcomes = torch.zeros(OLD_RING, dtype=torch.int64)
    kept = torch.zeros(OLD_RING)
    for k in range(len(labels)):
        outcomes[k % OLD_RING], kept[k % OLD_RING] = 2 * labels[k] + right[k], losses[k]
    return {
        "scored": torch.tensor(len(labels)), "correct": right.sum(),
        "loss_sum": losses.double().sum(), "outcomes": outcomes, "losses": kept,
    }  # fmt: skip


def test_accuracy_and_loss_go_on_and_other_measures_begin() -> None:
    torch.manual_seed(0)
    n, classes, start = 2_345, 4, "shadow.adam.scores."
    labels, losses = torch.randint(classes, (n,)), torch.rand(n)
    right = torch.rand(n) < 0.7
    old = old_scores(labels, right, losses)
    found = from_format_4({start + k: v for k, v in old.items()} | {"nonfinite": torch.tensor(3)})
    assert found.pop("nonfinite") == 3

    scores = Scores(classes, CPU)
    mine = scores.tensors()
    assert {start + k for k in mine} == found.keys() | {start + "histogram", start + "by_class"}
    for name, tensor in found.items():
        own = mine[name.removeprefix(start)]
        assert (own.shape, own.dtype) == (tensor.shape, tensor.dtype), name
        own.copy_(tensor)

    read = scores.read()
    assert (read.scored, read.correct) == (n, int(right.sum()))
    assert read.rolling_accuracy == float(right[-OLD_RING:].double().mean())
    assert read.rolling_loss == float(losses[-OLD_RING:].double().mean())
    probabilities = torch.eye(classes)[labels[:100]]
    scores.update(probabilities, labels[:100], labels[:100], torch.zeros(100), YES)
    measured = scores.measure()
    assert measured.correct == int(right.sum()) + 100
    assert {w: own.examples for w, own in measured.windows.items()} == {
        "total": 100, "1000": 100, "10000": 100,
    }  # fmt: skip
    kept = float(right[-OLD_RING:].sum() + 100) / (OLD_RING + 100)
    assert measured.windows["10000"].accuracy == pytest.approx(kept)
    assert measured.windows["1000"].accuracy == float(right[-900:].sum() + 100) / 1_000
    assert measured.windows["total"].recall == (1.0,) * classes
