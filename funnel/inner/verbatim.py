"""Load an optimizer's state bit for bit.

``torch.optim.Optimizer.load_state_dict`` casts floating state to the dtype of the parameter: an
fp32 log-gain of a bf16 parameter comes back rounded to 8 bits. `load_verbatim` lets torch do the
rest (hooks, group checks, devices) and then restores the tensors as they were saved.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch.optim import Optimizer

StateDict = dict[str, Any]


def load_verbatim(
    optimizer: Optimizer,
    load: Callable[[StateDict], None],
    state_dict: StateDict,
    check: Callable[[StateDict], None] = lambda _: None,
) -> None:
    """Call ``load(state_dict)``, then give the state of ``optimizer`` the saved dtypes and bits.

    ``check`` sees the dictionary as the pre-hooks left it, and may raise before anything changes.
    Loaded tensors are copies, on the device that torch chose. The user's own load hooks see what
    they always see: pre-hooks the saved dictionary, post-hooks the finished state.
    """
    saved: StateDict = {}

    def remember(_: Optimizer, final: StateDict) -> None:
        check(final)
        saved.update(final)

    def restore(_: Optimizer) -> None:
        ids = chain.from_iterable(g["params"] for g in saved["param_groups"])
        params = chain.from_iterable(g["params"] for g in optimizer.param_groups)
        for index, param in zip(ids, params, strict=True):
            if index in saved["state"]:
                optimizer.state[param] = _like_saved(saved["state"][index], optimizer.state[param])

    before = optimizer.register_load_state_dict_pre_hook(remember)
    after = optimizer.register_load_state_dict_post_hook(restore, prepend=True)
    try:
        load(state_dict)
    finally:
        before.remove()
        after.remove()


def _like_saved(saved: Any, loaded: Any) -> Any:
    if isinstance(saved, torch.Tensor):
        return saved.detach().clone().to(loaded.device)
    if isinstance(saved, dict):
        return {key: _like_saved(value, loaded[key]) for key, value in saved.items()}
    return loaded
