"""A rehearsal of the compiled loops: they are compiled, and their bits compared with those of the
torch operators that are their twins. Where one differs, operators run instead.
"""

from functools import partial

import torch
from torch import Tensor

from funnel.compiled import rehearsed
from funnel.families.ensemble import Ensemble, Layout
from funnel.families.forests.forest import LOOPS
from funnel.families.interface import Examples, Given, Scaling
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Classes, Outcome

WIDTH, EXAMPLES = 3, 80


def rehearse(task: str = "") -> str:
    """Choose the code that runs in this process, and return which, in words.

    It compiles for some seconds where no process has compiled on this disk before.

    Args:
        task: kind of what is learned: multiclass, binary, regression or quantile; empty for all.
    """
    cpu = torch.device("cpu")
    two, three = (Classes(torch.ones(classes, dtype=torch.bool)) for classes in (2, 3))
    numbers, quantiles = Numbers((), cpu), Numbers((0.1, 0.9), cpu)
    cases: dict[str, list[tuple[Outcome, bool]]] = {
        "multiclass": [(two, False), (three, True)],
        "binary": [(two, True)],
        "regression": [(numbers, True)],
        "quantile": [(quantiles, False)],
    }
    chosen = cases[task] if task else [case for found in cases.values() for case in found]
    return rehearsed(LOOPS, [partial(_learned, *case) for case in chosen])


def _learned(outcome: Outcome, has_ranks: bool) -> dict[str, Tensor]:
    """Return the state and the answers of families that have learned a little."""
    layout = Layout(1, WIDTH, 1, WIDTH, compares_codes=True)
    ensemble = Ensemble(layout, outcome, has_ranks)
    one = torch.ones(layout.width)
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        raw = torch.randn(EXAMPLES, layout.width, generator=generator)
        raw[:, 0].round_()
        raw[step::7, 2] = torch.inf
        labels = raw[:, 1] + raw[:, 3]
        if isinstance(outcome, Classes):
            labels = ((raw[:, 1] > 0).long() + (raw[:, 3] > 1)).clamp(max=outcome.outputs - 1)
        given = Given(raw, Scaling(0 * one, one))
        examples = Examples(given, labels, torch.ones(EXAMPLES), (0, step))
        if step == 1:
            ensemble.skip(examples)
        else:
            ensemble.catch_up(given.scaling)
            ensemble.learn(examples, ensemble.answers(given))
    found = ensemble.frozen().answers(given).answers
    return ensemble.tensors() | {"answers": found}
