"""A script as a stranger writes it: from a notebook to a service, and from there to onnxruntime."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.cli import environment
from tests.support.harness import serving

ROOT = Path(__file__).parents[3]
SCRIPT = """
import subprocess
import sys

import numpy as np
import onnxruntime
import pandas as pd

from funnel import Classifier, Client

random = np.random.default_rng(0)
ages, spent = random.integers(18, 80, 2_000), random.normal(50, 20, 2_000)
customers = pd.DataFrame({"age": ages, "spent": spent})
customers.loc[::10, "spent"] = np.nan
leaves = customers["age"] - customers["spent"].fillna(50) + random.normal(0, 5, 2_000) > 0
customers["outcome"] = np.where(leaves, "leaves", "stays")
past, today = customers[:1_800], customers[1_800:]
questions = today.drop(columns="outcome")

notebook = Classifier(model="logistic").fit(past.drop(columns="outcome"), past["outcome"])
print("in the notebook:", notebook.score(questions, today["outcome"]))

with Client(sys.argv[1]) as client:
    client.learn(past, "outcome", wait=True)
    served = client.predict(questions)
print("by the service:", np.mean(np.array(served.labels) == today["outcome"]))

command = [sys.executable, "-m", "funnel_stream", "export", "model.onnx", "--from", sys.argv[1]]
print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
session = onnxruntime.InferenceSession("model.onnx")
[exported] = session.run(["probabilities"], {"inputs": questions.to_numpy(np.float32)})

assert list(served.classes) == list(notebook.classes_) == ["leaves", "stays"]
assert notebook.score(questions, today["outcome"]) > 0.85
assert np.allclose(served.probabilities, notebook.predict_proba(questions), atol=1e-5)
assert np.allclose(exported, served.probabilities, atol=1e-4)
"""


def test_notebook_service_and_exported_model_answer_alike(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "service/entry")))
    with serving(tmp_path / "service", model="logistic", schema="auto") as service:
        command = [sys.executable, "script.py", service.url]
        ran = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False,
            env=environment() | {"PYTHONPATH": paths},
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2_000:]
    assert "in the notebook: 0.9" in ran.stdout
