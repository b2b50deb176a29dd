"""The last known label comes again: an answer of classes that needs no model.

Experts learn how labels depend on inputs; that labels persist they cannot see. So a pool mixes
this answer with theirs. Where the last known label was right h times and wrong m times, the next
label is that one with the odds h + 1 to m + 1, and any other open class as likely as the next.
Counts fade over MEMORY examples. So the answer's loss is bounded, at about log(MEMORY C) with C
open classes. A. Bifet, J. Read, I. Žliobaitė, B. Pfahringer, G. Holmes, 'Pitfalls in benchmarking
data stream classification and how to avoid them' (2013) show streams on which it is hard to beat.

Every example of a batch is answered from the batches before. Before the first label, class 0
stands for it. All is on the device, and nothing is read back.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from funnel.pool.classes import CLOSED
from funnel.tensorlists import weighted

MEMORY = 300.0
"""Examples over which h and m are counted."""
SHARE = 1e-4
"""Share of the weight that Fixed Share deals to this answer. It is small, so that streams whose
labels do not persist lose nothing by it; where they do, evidence soon outweighs it."""
LAST = "last"


def fresh(device: torch.device) -> dict[str, Tensor]:
    """Return what is known before the first label: ``last``, fp32 [3], which holds h, m and the
    last label."""
    return {LAST: torch.zeros(3, device=device)}


def chances(last: Tensor, outputs: Tensor, can_close: bool) -> Tensor:
    """Return the probabilities of the classes, fp32 [C]; of closed ones 0.

    Args:
        last: as `fresh` returned it.
        outputs: logits of any examples and experts, [e, C].
        can_close: whether classes can be closed. One output of CLOSED closes its class
            (`funnel.pool.classes`).
    """
    right, wrong, label = (last + last.new_tensor([1.0, 1.0, 0.0])).unbind()
    is_last = torch.arange(outputs.shape[1], device=last.device) == label
    if not can_close:
        others = wrong / max(1, outputs.shape[1] - 1)
        return torch.where(is_last, right, others) / (right + wrong)
    is_open = (outputs != CLOSED).all(dim=0)
    others = wrong / (is_open.sum() - 1).clamp(min=1)
    odds = torch.where(is_last, right, others) * is_open
    return odds / odds.sum()


class Joined(NamedTuple):
    """A batch as experts answer it, and this answer after theirs."""

    answers: Tensor
    """Probabilities, [K + 1, C, n]."""
    losses: Tensor
    """[K + 1, n], in nats."""
    summary: Tensor | None
    """The argument of `learn`; None where nothing is held, and nothing was joined."""


def joined(
    held: Mapping[str, Tensor],
    outputs: Tensor,
    can_close: bool,
    answers: Tensor,
    losses: Tensor,
    labels: Tensor,
    importance: Tensor | None,
) -> Joined:
    """Join this answer to those of experts, if it is held.

    Args:
        held: as `fresh` returned it, or empty.
        outputs, can_close: as for `chances`.
        answers: of the experts, [K, C, n].
        losses: of the experts, [K, n].
        labels: int64 [n].
        importance: weights of the examples, fp32 [n]; None for 1.
    """
    if LAST not in held:
        return Joined(answers, losses, None)
    last, n = held[LAST], len(labels)
    row = chances(last, outputs, can_close)
    own = -row.log().index_select(0, labels)
    right = weighted(labels == last[2], importance).sum(dim=0, keepdim=True, dtype=last.dtype)
    count = float(n) if importance is None else importance.sum()
    newest = last_of(labels, importance, last[2:])
    fading = last.new_tensor([(1.0 - 1.0 / MEMORY) ** n] * 2 + [0.0])
    return Joined(
        torch.cat([answers, row[:, None].expand_as(answers[:1])]),
        torch.cat([losses, own[None]]),
        torch.cat([right, count - right, newest]).addcmul(last, fading),
    )


def learn(held: Mapping[str, Tensor], summary: Tensor, learned: Tensor) -> None:
    """Learn from a batch, in place.

    Args:
        held: as `fresh` returned it.
        summary: as `joined` returned it.
        learned: whether it is learned, bool, 0-dim.
    """
    held[LAST].copy_(torch.where(learned, summary, held[LAST]))


def last_of(labels: Tensor, importance: Tensor | None, otherwise: Tensor) -> Tensor:
    """Return the last label of those that have a weight, fp32 [1].

    Args:
        labels: [n].
        importance: weights of the examples, fp32 [n]; None for 1.
        otherwise: returned where none has a weight, fp32 [1].
    """
    if importance is None:
        return labels[-1:].to(otherwise.dtype)
    order = torch.arange(1, len(labels) + 1, device=labels.device)
    place = (order * (importance > 0)).argmax(dim=0, keepdim=True)
    return torch.where((importance > 0).any(), labels[place].to(otherwise.dtype), otherwise)
