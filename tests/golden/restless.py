"""A user's model for the golden files. They name it, so it must not move or change."""

from torch import Tensor, nn


class Restless(nn.Module):
    """Batch normalization and dropout: buffers that training changes, and randomness."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(8, classes),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits [n, classes] of inputs [n, features]."""
        out: Tensor = self.layers(inputs)
        return out
