"""An exported model answers as the estimator does, in torch and in onnxruntime."""

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

from funnel import Classifier, Regressor
from service.export import ExportError


def numbers(n: int, columns: int = 5, missing: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    X = random.normal(size=(n, columns)).astype(np.float32)
    signal = X[:, 0] * 3 - X[:, 1]
    X[random.random(X.shape) < missing] = np.nan
    return X, signal


def in_onnxruntime(raw: bytes, inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"inputs": inputs})
    return np.asarray(found)


@pytest.mark.parametrize(("model", "classes"), [("logistic", 2), ("mlp", 4)])
def test_classes_are_answered_alike_in_torch_and_in_onnxruntime(model: str, classes: int) -> None:
    X, signal = numbers(2_000)
    names = np.array(["d", "a", "c", "b"])[:classes]
    y = names[np.digitize(signal, np.linspace(-2, 2, classes - 1))]
    estimator = Classifier(model=model).fit(X, y)
    expected = estimator.predict_proba(X)
    module = estimator.to_torch()
    with torch.no_grad():
        assert np.allclose(module(torch.from_numpy(X)).numpy(), expected, atol=1e-5)
    raw = estimator.to_onnx()
    found = in_onnxruntime(raw, X)
    assert found.shape == (2_000, classes)
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(in_onnxruntime(raw, X[:1]) - expected[:1]).max() < 1e-4
    assert (estimator.classes_[found.argmax(axis=1)] == y)[-500:].mean() > 0.7


@pytest.mark.parametrize("quantiles", [None, (0.1, 0.5, 0.9)])
def test_numbers_are_answered_alike(quantiles: tuple[float, ...] | None) -> None:
    X, signal = numbers(2_000)
    estimator = Regressor(model="logistic", quantiles=quantiles).fit(X, 50 + 10 * signal)
    found = in_onnxruntime(estimator.to_onnx(), X)
    if quantiles is None:
        expected = np.stack([estimator.predict(X), estimator.predict_std(X)], axis=1)
    else:
        expected = estimator.predict_quantiles(X)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_a_module_keeps_its_answers_while_the_estimator_learns_on() -> None:
    X, signal = numbers(600)
    estimator = Classifier(model="logistic").fit(X[:300], signal[:300] > 0)
    module, expected = estimator.to_torch(), estimator.predict_proba(X)
    estimator.partial_fit(X[300:], signal[300:] < 0)
    with torch.no_grad():
        assert np.allclose(module(torch.from_numpy(X)).numpy(), expected, atol=1e-5)
    assert not np.allclose(estimator.predict_proba(X), expected, atol=1e-2)


def test_columns_that_became_numbers_in_another_order_stay_in_theirs() -> None:
    X, signal = numbers(400, columns=3, missing=0.0)
    frame = pd.DataFrame(X, columns=["c", "a", "b"])
    labels, estimator = pd.Series(signal > 0), Classifier(model="logistic")
    for start in range(0, 400, 100):
        part = frame[start : start + 100]
        if start == 0:  # its kind is decided after those of the others
            part = part.assign(c=pd.Series([None] * 100, dtype=object))
        estimator.learn_many(part, labels[start : start + 100])
    assert estimator.to_torch().names == ("c", "a", "b")
    module = estimator.to_torch()
    inputs = frame[list(module.names)].to_numpy(np.float32)
    with torch.no_grad():
        found = module(torch.tensor(inputs)).numpy()
    assert np.allclose(found, estimator.predict_proba_many(frame).to_numpy(), atol=1e-5)


def test_what_cannot_be_exported_is_named() -> None:
    X, signal = numbers(200)
    with pytest.raises(ExportError, match="trees, neighbours and frequencies of labels cannot"):
        Classifier().fit(X, signal > 0).to_torch()
    frame = pd.DataFrame({"plan": ["a", "b"] * 50, "age": range(100)})
    estimator = Classifier(model="logistic").fit(frame, frame["plan"])
    with pytest.raises(ExportError, match="column 'plan' is a category: only numbers"):
        estimator.to_onnx()
