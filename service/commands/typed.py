"""Names of settings in messages, as the user typed them."""

import re
from collections.abc import Collection

from streams.environment import PREFIX

VARIABLE = re.compile(rf"\b{PREFIX}([A-Z][A-Z_]*[A-Z])\b")


def option_of(setting: str) -> str:
    """Return the option of a setting.

    >>> option_of("batch_size")
    '--batch-size'
    """
    return f"--{setting.lower().replace('_', '-')}"


def as_typed(message: str, options: Collection[str]) -> str:
    """Return a message with options in place of the variables whose values came from options.

    >>> as_typed("FUNNEL_LR: give a number; see FUNNEL_SEED", {"--lr"})
    '--lr: give a number; see FUNNEL_SEED'

    Args:
        message: which names settings by their variables.
        options: those that were typed.
    """

    def shown(found: re.Match[str]) -> str:
        option = option_of(found[1])
        return option if option in options else found[0]

    return VARIABLE.sub(shown, message)
