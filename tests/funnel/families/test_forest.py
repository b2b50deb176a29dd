"""Trees in tensors send examples where a plain walk does, and grow as the equations say."""

import math

import torch

from funnel.families.forests.forest import DEPTH, LEAVES, NODES, forest_logits, leaf_of
from funnel.families.forests.growing import (
    BINS,
    LEAST_GAIN,
    LEAST_HESSIAN,
    RIDGE,
    Grown,
    bins_of,
    features_of_tree,
    grow,
    quantiles,
)
from funnel.families.outcomes import RATE, Classes


def a_forest(trees: int, width: int, classes: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    features = torch.randint(width, (trees, NODES), generator=generator)
    thresholds = torch.randn(trees, NODES, generator=generator)
    thresholds[torch.rand(trees, NODES, generator=generator) < 0.2] = math.inf
    return features, thresholds, torch.randn(trees, LEAVES, classes, generator=generator)


def rows_of(n: int, width: int, seed: int = 3) -> torch.Tensor:
    rows = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    rows[::7, 0] = math.inf  # missing
    return rows


def leaves_of(features: torch.Tensor, thresholds: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return leaf_of(features, thresholds, rows.t().contiguous(), torch.arange(len(rows)))


def binned(rows: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    m, width = rows.shape
    return bins_of(rows.t().contiguous(), edges, torch.arange(m), torch.arange(width))


def walked(features: list[int], thresholds: list[float], row: list[float]) -> int:
    node = 0
    for _ in range(DEPTH):
        node = 2 * node + 1 + (row[features[node]] > thresholds[node])
    return node - NODES


def test_an_example_falls_where_a_plain_walk_takes_it() -> None:
    features, thresholds, _ = a_forest(4, 5, 3)
    rows = rows_of(50, 5)
    found = leaves_of(features, thresholds, rows).tolist()
    for tree in range(4):
        own = features[tree].tolist(), thresholds[tree].tolist()
        assert found[tree] == [walked(*own, row) for row in rows.tolist()]


def test_logits_are_the_sums_of_the_leaves() -> None:
    features, thresholds, leaves = a_forest(6, 5, 3)
    rows = rows_of(40, 5)
    places = leaves_of(features, thresholds, rows)
    expected = sum((leaves[t][places[t]] for t in range(4)), torch.zeros(40, 3))
    torch.testing.assert_close(forest_logits(features, thresholds, leaves, rows, 4), expected)
    whole = sum((leaves[t][places[t]] for t in range(6)), torch.zeros(40, 3))
    torch.testing.assert_close(forest_logits(features, thresholds, leaves, rows, 99), whole)


def of_two_classes(m: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = rows_of(m, width)
    return rows, ((rows[:, 1] > 0.3) ^ (rows[:, 2] < -0.2)).long()


def grown(
    rows: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    edges: torch.Tensor | None = None,
) -> Grown:
    generator, classes = torch.Generator().manual_seed(0), int(labels.max()) + 1
    outcome = Classes(torch.ones(classes, dtype=torch.bool))
    weights = torch.ones(len(labels)) if weights is None else weights
    edges = quantiles(rows.t()) if edges is None else edges
    slopes = outcome.slopes(labels, weights, torch.zeros(len(labels), classes), generator)
    return grow(binned(rows, edges), slopes, weights, torch.arange(rows.shape[1]), edges)


def test_the_first_split_has_the_largest_gain_of_all() -> None:
    rows, labels = of_two_classes(400, 4)
    tree, edges = grown(rows, labels), quantiles(rows.t())
    g, h = labels.double() - 0.5, torch.full((400,), 0.25 + 1e-3, dtype=torch.float64)

    def score(mask: torch.Tensor) -> float:
        return float(g[mask].sum() ** 2 / (h[mask].sum() + RIDGE))

    gains = {}
    for feature in range(4):
        for code in range(BINS - 1):
            above = rows[:, feature] > edges[feature, code]
            if min(float(h[above].sum()), float(h[~above].sum())) < LEAST_HESSIAN:
                continue
            whole = score(torch.ones_like(above))
            gains[feature, float(edges[feature, code])] = score(above) + score(~above) - whole
    best = max(gains.values())
    mine = gains[int(tree.features[0]), float(tree.thresholds[0])]
    assert best > LEAST_GAIN
    assert math.isclose(mine, best, rel_tol=1e-3)
    assert math.isclose(float(tree.gains[0]) * 400, best, rel_tol=1e-3)


def test_leaves_are_newton_steps_of_the_examples_in_them() -> None:
    rows, labels = of_two_classes(400, 4)
    tree = grown(rows, labels)
    places = leaves_of(tree.features[None], tree.thresholds[None], rows)[0]
    for leaf in places.unique().tolist():
        mine = labels[places == leaf].double()
        slope = float((mine - 0.5).sum())
        expected = RATE / 2 * slope / (0.25 * len(mine) + RIDGE)
        assert math.isclose(float(tree.leaves[leaf, 1]), expected, rel_tol=1e-4, abs_tol=1e-6)


def test_a_tree_depends_on_no_order_of_the_examples() -> None:
    rows, labels = of_two_classes(500, 4)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    one, other = grown(rows, labels), grown(rows[order], labels[order])
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.thresholds, other.thresholds)
    torch.testing.assert_close(one.leaves, other.leaves)


def test_a_weight_of_two_counts_as_two_copies() -> None:
    rows, labels = of_two_classes(300, 4)
    weights = torch.ones(300)
    weights[:100] = 2.0
    twice = grown(torch.cat([rows, rows[:100]]), torch.cat([labels, labels[:100]]))
    once = grown(rows, labels, weights, quantiles(torch.cat([rows, rows[:100]]).t()))
    assert torch.equal(once.features, twice.features)
    torch.testing.assert_close(once.leaves, twice.leaves)


def test_missing_values_go_the_same_way_in_growing_and_in_answering() -> None:
    rows = rows_of(700, 3)
    labels = (torch.isinf(rows[:, 0]) | (rows[:, 0] > 1.0)).long()
    tree = grown(rows, labels)
    places = leaves_of(tree.features[None], tree.thresholds[None], rows)[0]
    for leaf in places.unique().tolist():
        slope = float((labels[places == leaf].double() - 0.5).sum())
        curvature = 0.25 * int((places == leaf).sum())
        expected = RATE / 2 * slope / (curvature + RIDGE)
        assert math.isclose(float(tree.leaves[leaf, 1]), expected, rel_tol=1e-4, abs_tol=1e-6)
    missing = places[torch.isinf(rows[:, 0])]
    assert bool((tree.leaves[missing].argmax(dim=1) == 1).all())


def test_many_classes_are_learned_through_two_projections() -> None:
    rows = rows_of(2_000, 6)
    labels = (rows[:, 1].clamp(-1.99, 1.99) + 2).mul(2).long()  # eight classes
    places_of = grown(rows, labels)
    places = leaves_of(places_of.features[None], places_of.thresholds[None], rows)[0]
    right = (places_of.leaves[places].argmax(dim=1) == labels).float().mean()
    assert float(right) > 0.7


def test_a_tree_looks_at_a_part_of_many_features() -> None:
    usable = torch.arange(3, 203)
    chosen = features_of_tree(usable, torch.Generator().manual_seed(0))
    assert len(chosen) == len(chosen.unique()) == 24
    assert bool(torch.isin(chosen, usable).all())
