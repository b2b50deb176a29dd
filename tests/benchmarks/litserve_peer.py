"""A LitServe server of the same logistic model, which does not learn; a separate program.

    python -m tests.benchmarks.litserve_peer PORT

It reads the same safetensors with the same function as Funnel, and answers with the label.
Everything else is LitServe's default: one HTTP process, one process for the model, no batching.
"""

import sys
from typing import Annotated

import litserve
import torch
from fastapi import Body
from torch import Tensor, nn

from service.fold.inputs import scaled
from streams.batch import decode_features


class Logistic(litserve.LitAPI):
    """Logistic regression from 784 features to 10 classes."""

    def setup(self, device: str) -> None:
        """Make the model."""
        torch.set_num_threads(1)
        self.module = nn.Linear(784, 10, device=device).eval()

    def decode_request(self, request: Annotated[bytes, Body()]) -> Tensor:
        """Return inputs, fp32 [n, 784]."""
        return scaled(torch.from_numpy(decode_features(request)))

    @torch.inference_mode()
    def predict(self, inputs: Tensor) -> Tensor:
        """Return labels, int64 [n]."""
        return self.module(inputs).argmax(dim=1)

    def encode_response(self, output: Tensor) -> dict[str, list[int]]:
        """Return the answer, which LitServe sends as JSON."""
        return {"labels": output.tolist()}


if __name__ == "__main__":
    litserve.LitServer(Logistic(), accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
