"""The weights of a pool with a table, as prediction needs them; nothing changes them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from funnel.pool.backprop import expert_outputs
from funnel.pool.loss import Held, Loss
from funnel.pool.pool import predicted
from funnel.pool.sparse import inputs_of
from funnel.pool.tables.index import KeyIndex, Keys, Numbers
from funnel.pool.tables.replacements import Replacements
from funnel.pool.tables.rows import NewWeights
from funnel.pool.tables.version import Version


@dataclass(frozen=True, eq=False)
class Published:
    """The weights of K experts at one version; `predict` may be called in any thread.

    A key that was new at that version counts for nothing.
    """

    parameters: tuple[Tensor, ...]
    """Weight [K, out, in] and bias [K, out] of each layer in turn; the first over dense inputs."""
    log_weights: Tensor
    """Log weights of the experts, fp32 [K]."""
    rows: Version
    """Weights of the rows, K · out each."""
    loss: Loss
    """The loss, which decides what an answer is."""
    held: Held
    """Tensors that the loss had learned."""
    index: KeyIndex
    """Rows by key: it goes on learning, but only adds rows."""
    replacements: Replacements
    """The replacements that rows may have to take yet."""
    start_of: NewWeights
    """Returns the weights that rows start with."""

    @property
    def used(self) -> int:
        """Number of rows."""
        return self.rows.used

    @torch.no_grad()
    def outputs(
        self,
        dense: Tensor,
        examples: npt.NDArray[np.integer],
        rows: Numbers,
        values: npt.NDArray[np.float32],
    ) -> Tensor:
        """Return the outputs of each expert, such as logits, fp32 [K, n, out].

        Args:
            dense: fp32 [n, d].
            examples: to which example each row belongs, [e], ascending.
            rows: their numbers, int64 [e]; those that are not in this version count for nothing.
            values: fp32 [e].
        """
        known = (rows >= 0) & (rows < self.used)
        named, columns = np.unique(rows[known], return_inverse=True)
        first, *others = self.parameters
        weight = torch.cat([first.flatten(0, 1), self.columns(named).to(first.device)], dim=1)
        d = dense.shape[1]
        if not len(named):
            return expert_outputs(self.parameters, dense)
        entries = examples[known], columns + d, values[known]
        inputs = inputs_of(dense, *entries, features=d + len(named), spare=d)
        return expert_outputs([weight.unflatten(0, first.shape[:2]), *others], inputs)

    def predict(
        self,
        dense: Tensor,
        examples: npt.NDArray[np.integer],
        keys: Keys,
        values: npt.NDArray[np.float32],
    ) -> tuple[Tensor, Tensor]:
        """Return a label for each row, [n], and the mixture's answers, fp32 [n, A], always finite.

        Args:
            dense: fp32 [n, d].
            examples: to which example each key belongs, [e], ascending.
            keys: uint64 [e].
            values: fp32 [e].
        """
        outputs = self.outputs(dense, examples, self.index.find(keys), values)
        answers = predicted(self.loss, self.held, self.log_weights, outputs)
        return self.loss.chosen(outputs, answers), answers

    def columns(self, rows: Numbers) -> Tensor:
        """Return the weights of rows, [K · out, U]."""
        weights, epochs = self.rows.read(rows)
        self.replacements.bring(weights, epochs, self.start_of, rows)
        return torch.from_numpy(weights).t()
