"""Who predicts worse than one who knows nothing begins anew: Page's test.

After an abrupt shift what was learned is in the way, not only useless: weights must be unlearned,
and AdaGrad's steps have grown short. A model that gives each of C classes the same probability
loses log C an example, and Page's cumulative sum of what an expert loses beyond that,

    S ← max(0, S + Σ (ℓ - log C)),

is the log-likelihood ratio of the two since the moment from which on it is the largest [E. S. Page,
'Continuous inspection schemes', Biometrika 41, 1954]. While an expert knows anything S stays near
0; one that is wrong and sure of it is beyond LIMIT within a batch. That experts which begin after a
shift are what a pool lacks is from E. Hazan and C. Seshadhri, 'Efficient learning algorithms for
changing environments', ICML 2009, where one begins every round.

Counting starts once a batch has shown that the expert knows something: whoever has only just begun,
from weights that may be worse than none, is let learn.
"""

import math

import torch
from torch import Tensor

LIMIT = 30.0
"""Nats of S at which an expert begins anew; a chance of e^-30 if it knew as much as nothing."""
UNKNOWN = -1.0
"""S of one who has shown nothing yet; below any that is counted."""


class Renewal:
    """Tracks how much worse than knowing nothing each expert is; nothing is read on the host.

    Args:
        renews: which experts begin anew at all, bool [K].
    """

    def __init__(self, renews: Tensor) -> None:
        self.renews = renews
        self.excess = torch.full((len(renews),), UNKNOWN, device=renews.device)
        """S, fp32 [K], in nats; UNKNOWN of those who have shown nothing yet, or do not renew."""

    def due(self) -> Tensor:
        """Return who is to begin anew, bool [K]."""
        return self.excess > LIMIT

    def update(self, losses: Tensor, classes: int, keep: Tensor) -> None:
        """Take the losses of a batch.

        Args:
            losses: of each expert and example, [K, n], in nats.
            classes: C.
            keep: of which experts, bool [K].
        """
        worse = (losses - math.log(classes)).sum(dim=1)
        counts = keep & self.renews & ((self.excess >= 0.0) | (worse < 0.0))
        moved = (self.excess + worse).clamp_(min=0.0)
        self.excess.copy_(torch.where(counts, moved, self.excess))

    def begin(self, who: Tensor) -> None:
        """Forget of some, bool [K], what they have shown."""
        self.excess.masked_fill_(who, UNKNOWN)
