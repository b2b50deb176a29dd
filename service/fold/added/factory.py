"""The factory of a family that a user adds, ``package.module:factory``."""

import logging
from threading import Lock

import torch

from funnel.families.interface import Family
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Outcome
from service.fold import networks
from service.fold.networks import ModelError

logger = logging.getLogger("funnel")

METHODS = ("names", "tensors", "answer", "learn")
_seeding = Lock()
"""Held while torch's global generator is seeded: predictions make families in their own thread."""


class Factory:
    """It makes the families of one name.

    Args:
        full: ``package.module:factory``.
        seed: of torch's draws while a family is made.

    Raises:
        ModelError: it cannot be imported.
    """

    def __init__(self, full: str, seed: int) -> None:
        self.full, self._seed = full, seed
        self._factory = networks.imported(full, "family")
        self._logged: set[str] = set()
        self.errors = 0
        """How often its families have raised and were excused, in this process."""

    @property
    def name(self) -> str:
        """The name of the factory in its module."""
        return self.full.partition(":")[2]

    def __call__(self, features: int, outcome: Outcome) -> Family:
        """Return a family as it begins.

        Raises:
            ModelError: the factory cannot be called, or returns no family.
        """
        size: dict[str, object] = {"classes": outcome.outputs}
        if isinstance(outcome, Numbers):
            size = {"quantiles": outcome.quantiles}
        with _seeding, torch.random.fork_rng(devices=[]), networks.settings_kept(self.full):
            torch.manual_seed(self._seed)
            made = networks.made_by(self._factory, self.full, features=features, **size)
        if isinstance(made, type):
            raise ModelError(
                f"family {self.full} returned the class {made.__name__}; return one made of it"
            )
        if not isinstance(made, Family):
            missing = ", ".join(n for n in METHODS if getattr(made, n, None) is None)
            raise ModelError(
                f"family {self.full} returned {networks.described(made)} without {missing}; "
                "funnel.families.Family says what a family has"
            )
        return made

    def excuse(self, error: BaseException, when: str) -> None:
        """Log what a family has raised; its traceback only once, as every batch may raise the same.

        Args:
            error: as it was caught.
            when: it was raised, in words.

        Raises:
            BaseException: it, if the machine has failed.
        """
        if networks.is_of_machine(error):
            raise error
        self.errors += 1
        origin = networks.origin_of(error)
        logger.error(
            "the family %s raised %s: %r. The others go on without it",
            self.full, when, error, exc_info=None if origin in self._logged else error,
        )  # fmt: skip
        self._logged.add(origin)
