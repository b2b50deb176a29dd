"""Runs of equal labels count less than their length, and only runs beyond chance do."""

import math

import torch

from funnel.families.memory import PRIOR_HALF_LIFE
from funnel.families.mixture import Mixture
from funnel.families.outcomes import Classes
from funnel.families.runs import CHANCE, Runs

TRUE = torch.tensor(True)
EIGHT = Classes(torch.ones(8, dtype=torch.bool))


def test_each_example_counts_as_the_equation_says() -> None:
    runs, counts, before, latest = Runs(EIGHT), [0.0] * 8, 0, -1
    for batch in ([3] * 9, [3] * 20 + [5] * 20, [5, 5, 1, 5, 5], [1] * 60):
        found, expected = runs.learn(torch.tensor(batch), TRUE).tolist(), []
        for label in batch:
            before, latest = (before + 1 if label == latest else 0), label
            share = (counts[label] + 1) / (sum(counts) + 8)
            expected.append(min(1.0, CHANCE / max(1e-9, before * -math.log(share))))
        counts = [c * 2 ** (-len(batch) / PRIOR_HALF_LIFE) for c in counts]
        for label in batch:
            counts[label] += 1
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_labels_drawn_independently_count_in_full() -> None:
    chances = torch.tensor([0.8, 0.05, 0.05, 0.02, 0.02, 0.02, 0.02, 0.02])
    drawn = torch.multinomial(chances, 5_000, True, generator=torch.Generator().manual_seed(0))
    runs = Runs(EIGHT)
    counted = torch.cat([runs.learn(labels, TRUE) for labels in drawn.split(100)])
    assert float(counted.mean()) > 0.99


def test_a_long_run_does_not_hide_who_was_right_at_its_end() -> None:
    """Two families: one repeats the latest label, and the other knows most of each label."""
    trust = {}
    for counts_in_full in (False, True):
        mixture = Mixture(4, EIGHT, None, [slice(0, 2), slice(2, 4)])
        if counts_in_full:
            mixture.runs = None
        latest = 0
        for k in range(40):
            label = (k // 10) % 8  # a run of 1,000 in batches of 100
            labels = torch.full((100,), label)
            repeats, knows = torch.full((8,), 1e-4), torch.full((8,), 0.03)
            repeats[latest], knows[label] = 1.0 - 7e-4, 0.79
            given = torch.stack([repeats, repeats, knows, knows])[:, None].expand(-1, 100, -1)
            mixed = mixture.weights.mix(given, EIGHT)
            mixture.learn(mixed, given, labels, torch.ones(100), TRUE)
            latest = label
        trust[counts_in_full] = float(mixture.weights.parts.softmax(dim=0)[2])
    assert trust[False] > 3 * trust[True]
