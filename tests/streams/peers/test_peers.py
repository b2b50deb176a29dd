"""The peers equal their libraries' models."""

import importlib.util
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.optim import Optimizer

from streams.batch import Batch
from streams.peers.hypergradient import HypergradientSGD
from streams.peers.library_learners import likeliest
from streams.peers.peers import PEERS, QUICK, Peer, UnknownPeerError, find_peers
from streams.peers.torch_learner import TorchLearner
from streams.prequential import Probabilistic, prequential
from streams.sources.catalog import get

STREAM = get("segments", 500)
ACCUMULATED = "initial_accumulator_value 0.1"
SHIFTING = get("labels", 6_400, "digits")
BATCHES = [
    Batch((b.features - b.features.mean(0)) / (b.features.std(0) + 1), b.labels)
    for b in STREAM.batches(50)
]


def installed(name: str) -> Peer:
    peer = PEERS[name]
    if importlib.util.find_spec(peer.module) is None:
        pytest.skip(f"needs {peer.module}")
    return peer


def by_hand(
    make: Callable[[list[torch.Tensor]], Optimizer], batches: list[Batch], resets: tuple[int, ...]
) -> list[bool]:
    """Return the outcomes of softmax regression written out."""
    width, classes = batches[0].features.shape[1], 10
    weight = torch.zeros(classes, width, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer, seen, outcomes = make([weight, bias]), 0, []
    for batch in batches:
        x, y = torch.from_numpy(batch.features), torch.from_numpy(batch.labels)
        if hasattr(optimizer, "eval"):
            optimizer.eval()
        with torch.no_grad():
            outcomes += ((x @ weight.T + bias).argmax(dim=1) == y).tolist()
        if seen in resets:
            optimizer = make([weight, bias])
        if hasattr(optimizer, "train"):
            optimizer.train()
        logits = x @ weight.T + bias
        loss = (logits.logsumexp(dim=1) - logits[torch.arange(len(y)), y]).mean()
        weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
        optimizer.step()
        seen += len(batch)
    return outcomes


@pytest.mark.parametrize(
    ("name", "setting", "path", "arguments"),
    [
        ("adagrad", f"lr 0.1, {ACCUMULATED}", "torch.optim.Adagrad", (0.1, 0, 0, 0.1)),
        ("rmsprop", "lr 0.01", "torch.optim.RMSprop", (0.01,)),
        ("adam", "lr 0.01", "torch.optim.Adam", (0.01,)),
        ("sgd", "lr 0.3", "torch.optim.SGD", (0.3,)),
        ("momentum", "lr 0.03, momentum 0.9", "torch.optim.SGD", (0.03, 0.9)),
        ("dadaptation", "SGD, lr 0.3", "dadaptation.DAdaptSGD", (0.3,)),
        ("prodigy", "lr 0.3", "prodigyopt.Prodigy", (0.3,)),
        ("schedule-free", "SGD, lr 1", "schedulefree.SGDScheduleFree", (1.0,)),
    ],
)  # fmt: skip
def test_an_optimizer_is_run_as_by_hand(
    name: str, setting: str, path: str, arguments: tuple[float, ...]
) -> None:
    learner = installed(name).settings[setting](get("stationary"), 0)
    batches = digits(10)
    module, _, attribute = path.rpartition(".")
    optimizer = getattr(importlib.import_module(module), attribute)
    outcomes = prequential(learner, batches)
    assert outcomes.tolist() == by_hand(lambda ps: optimizer(ps, *arguments), batches, ())
    assert outcomes[-200:].mean() > 0.3


def digits(batches: int) -> list[Batch]:
    stream = get("stationary", 100 * batches, "digits")
    return [Batch(b.features.astype(np.float32) / 255 - 0.3, b.labels) for b in stream.batches(100)]


def test_the_oracle_resets_the_optimizer_and_keeps_the_weights() -> None:
    setting = "lr 0.1, initial_accumulator_value 0"
    batches = [
        Batch(b.features.astype(np.float32) / 255 - 0.3, b.labels) for b in SHIFTING.batches(100)
    ]
    outcomes = prequential(PEERS["adagrad-reset"].settings[setting](SHIFTING, 0), batches)

    def make(parameters: list[torch.Tensor]) -> Optimizer:
        return torch.optim.Adagrad(parameters, 0.1)

    assert outcomes.tolist() == by_hand(make, batches, (6_000,))
    assert outcomes.tolist() != by_hand(make, batches, ())


@pytest.mark.parametrize("size", [64, 100, 7_000])
def test_the_oracle_resets_before_the_batch_that_holds_a_shift(size: int) -> None:
    made: list[int] = []

    def make(parameters: Iterable[torch.Tensor]) -> Optimizer:
        made.append(learned)
        return torch.optim.SGD(parameters, 0.1)

    learned = 0
    learner = TorchLearner(2, 2, make, (6_000, 12_000))
    for start in range(0, 14_000, size):
        learned = start
        learner.learn(Batch(np.ones((size, 2), np.float32), np.zeros(size, np.int64)))
    assert made == [0, 6_000 // size * size, 12_000 // size * size]


def test_river_gets_a_constant_for_its_bias() -> None:
    batch = Batch(np.zeros((50, 2), np.float32), np.ones(50, np.int64))
    stream = get("sea", 100)
    learner = PEERS["river-softmax"].settings["SGD 0.1"](stream, 0)
    learner.learn(batch)
    assert learner.predict(batch.features).tolist() == batch.labels.tolist()


def test_the_hypergradient_rate_follows_its_formula() -> None:
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = HypergradientSGD([w], lr=0.1, hyper_lr=0.01)
    expected, rate, before = np.array([1.0, -2.0]), 0.1, np.zeros(2)
    for _ in range(5):
        gradient = expected * [1.0, 3.0]
        rate += 0.01 * float(gradient @ before)
        expected, before = expected - rate * gradient, gradient
        w.grad = w.detach() * torch.tensor([1.0, 3.0])
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-5)
        np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-5)


def test_scikit_learn_is_run_as_by_hand() -> None:
    from sklearn.linear_model import SGDClassifier

    outcomes = prequential(PEERS["scikit-learn"].settings["eta0 0.01"](STREAM, 3), BATCHES)
    model = SGDClassifier(
        loss="log_loss", learning_rate="constant", eta0=0.01, penalty=None, random_state=3
    )
    expected: list[bool] = (BATCHES[0].labels == 0).tolist()
    for before, batch in pairwise(BATCHES):
        model.partial_fit(before.features, before.labels, np.arange(7))
        expected += (model.predict(batch.features) == batch.labels).tolist()
    assert outcomes.tolist() == expected


def test_vowpal_wabbit_is_run_as_by_hand() -> None:
    """Its likeliest label is the label that it gives without probabilities."""
    peer = installed("vw")
    learner = peer.settings["-l 0.5"](STREAM, 0)
    outcomes = prequential(learner, BATCHES)
    workspace = importlib.import_module("vowpalwabbit").Workspace(
        "--quiet --oaa 7 --loss_function logistic -l 0.5"
    )
    expected = []
    for batch in BATCHES:
        lines = [
            "| " + " ".join(f"{j}:{value}" for j, value in enumerate(row)) for row in batch.features
        ]
        expected += [
            workspace.predict(line) == y + 1 for line, y in zip(lines, batch.labels, strict=True)
        ]
        for line, y in zip(lines, batch.labels, strict=True):
            workspace.learn(f"{y + 1} {line}")
    assert outcomes.tolist() == expected


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gives_probabilities_of_which_the_largest_is_its_label(name: str) -> None:
    peer = installed(name)
    learner = list(peer.settings.values())[len(peer.settings) // 2](STREAM, 0)
    assert isinstance(learner, Probabilistic)
    for batch in BATCHES:
        labels, probabilities = learner.answer(batch.features)
        np.testing.assert_array_equal(labels, learner.predict(batch.features))
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
        own = probabilities[np.arange(len(labels)), labels]
        np.testing.assert_allclose(own, probabilities.max(axis=1))
        learner.learn(batch)


def test_probabilities_that_are_no_numbers_become_equal() -> None:
    labels, found = likeliest([[float("nan"), 1.0], [0.0, 0.0], [0.25, 0.75]])
    assert labels.tolist() == [0, 0, 1]
    assert found.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.25, 0.75]]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_learns_more_than_the_odds(name: str) -> None:
    peer = installed(name)
    quick = [make for setting, make in peer.settings.items() if not setting.endswith(" 100")]
    accuracies = [
        prequential(make(STREAM, 0), BATCHES)[-250:].mean() for make in quick[len(quick) // 2 :][:3]
    ]
    assert max(accuracies) > 2 / 7


def test_a_missing_package_is_named() -> None:
    peer = Peer("gone", {}, "no_such_module")
    assert peer.missing(STREAM) == "needs no_such_module: pip install 'funnel-stream[bench]'"
    assert PEERS["sgd"].missing(STREAM) == ""


def test_slow_peers_are_skipped_on_images() -> None:
    assert "784" in PEERS["river-forest"].missing(SHIFTING)
    assert PEERS["river-forest"].missing(STREAM) == ""


def test_peers_are_found_by_name() -> None:
    assert list(find_peers(["adam", "sgd"])) == ["adam", "sgd"]
    assert find_peers(["all"]) == PEERS
    assert set(QUICK) <= set(PEERS)
    with pytest.raises(UnknownPeerError, match=r"'adamm'.*adagrad"):
        find_peers(["adamm"])


@pytest.mark.parametrize(
    ("name", "setting"),
    [("river-forest", "n_models 30"), ("river-patches", "n_models 10"),
     ("river-bagging", "n_models 10"), ("river-mondrian", "n_estimators 30"),
     ("river-neighbours", "n_neighbors 3")],
)  # fmt: skip
def test_the_learners_of_tables_learn_what_no_line_separates(name: str, setting: str) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-1, 1, (1_200, 2)).astype(np.float32)
    labels = ((inputs[:, 0] > 0) ^ (inputs[:, 1] > 0)).astype(np.int64)
    stream = get("bananas", 1_200)
    learner = PEERS[name].settings[setting](stream, 0)
    assert isinstance(learner, Probabilistic)
    batches = [Batch(inputs[k : k + 100], labels[k : k + 100]) for k in range(0, 1_200, 100)]
    assert prequential(learner, batches)[-300:].mean() > 0.8
    _, found = learner.answer(inputs[:20])
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
