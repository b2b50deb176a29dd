"""The time from an example to its label, as the option ``--delay`` gives it.

500            500 examples later
30s            30 seconds later; also ms, m, h and d
exp:500        drawn for each label from the exponential distribution with this mean
never          the label does not come
yes=30s,no=never,exp:5m
               by label; the part without a label is for all others, which come at once if there
               is none
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streams.errors import FunnelError

Times = npt.NDArray[np.float64]

AMOUNT = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
DRAWN, NEVER = "exp:", "never"
DRAWS = 0xDE1A
"""Delays are drawn from a generator of their own, which no stream uses."""


class DelayError(FunnelError, ValueError):
    """A text is no delay; the message says what one is."""


class Wait(NamedTuple):
    """The time until one kind of label comes."""

    amount: float = 0.0
    """Examples or seconds; infinite if it never comes."""
    is_drawn: bool = False
    """True if the amount is the mean of exponentially distributed ones."""


@dataclass(frozen=True)
class Delay:
    """The time from each example to its label."""

    text: str
    """As it was given."""
    others: Wait
    """For labels that are not in ``by_label``."""
    by_label: Mapping[str, Wait]
    in_seconds: bool = False
    """True if amounts are seconds, and not examples."""

    @classmethod
    def parse(cls, text: str) -> "Delay":
        """Return the delay that a text gives.

        >>> Delay.parse("churn=exp:500,100").by_label["churn"]
        Wait(amount=500.0, is_drawn=True)

        Raises:
            DelayError: it gives none.
        """
        units: set[bool] = set()
        found: dict[str, Wait] = {}
        for part in text.split(","):
            label, has_label, amount = part.rpartition("=")
            if (label if has_label else "") in found:
                raise DelayError(f"{part!r} is the second delay for the same labels")
            if has_label and not label:
                raise DelayError(f"a label is missing before '=' in {part!r}")
            found[label] = _wait(amount.strip(), units)
        if len(units) > 1:
            raise DelayError(f"{text!r} mixes examples and times; give all in one unit")
        return cls(text, found.pop("", Wait()), found, True in units)

    def draws(self, seed: int) -> "Draws":
        """Return what draws the time from each example of a stream to its label.

        Args:
            seed: the same seed and labels give the same times.
        """
        return Draws(self, np.random.default_rng([seed, DRAWS]))

    def check_labels(self, labels: Sequence[str]) -> None:
        """Make sure that the labels that have a delay of their own occur.

        Args:
            labels: all that occur.

        Raises:
            DelayError: one does not.
        """
        if unknown := [label for label in self.by_label if label not in labels]:
            shown = ", ".join(labels[:8])
            raise DelayError(f"--delay names the label {unknown[0]!r}, and there are {shown}")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Recorded:
    """The time from each example of a recorded stream to its label, in examples.

    It takes the place of a `Delay`.
    """

    waits: Times
    """Times of all examples, [n]; infinite if a label never comes."""
    text: str
    in_seconds: bool = False

    def draws(self, seed: int) -> "Played":
        """Return what gives the times; the seed changes nothing."""
        return Played(self.waits)

    def check_labels(self, labels: Sequence[str]) -> None:
        """Do nothing: no label has a delay of its own."""

    def __str__(self) -> str:
        return self.text


AnyDelay = Delay | Recorded


class Played:
    """Gives the recorded times of a stream's labels, one after another.

    Args:
        waits: of all examples, [n].
    """

    def __init__(self, waits: Times) -> None:
        self._waits, self._begun = waits, 0

    def next(self, labels: Sequence[str]) -> Times:
        """Return the time from each of the next examples to its label, [k].

        Args:
            labels: of the examples, [k].
        """
        begun, self._begun = self._begun, self._begun + len(labels)
        return self._waits[begun : self._begun]


class Draws:
    """Draws the times of a stream's labels, one after another.

    Args:
        delay: that is drawn.
        chances: used up by it.
    """

    def __init__(self, delay: Delay, chances: np.random.Generator) -> None:
        self._delay, self._chances = delay, chances

    def next(self, labels: Sequence[str]) -> Times:
        """Return the time from each of the next examples to its label, [n].

        A label that never comes has an infinite one. How a stream is cut changes nothing.

        Args:
            labels: of the examples, [n].
        """
        delay = self._delay
        waits = [delay.by_label.get(label, delay.others) for label in labels]
        amounts = np.array([wait.amount for wait in waits], np.float64)
        chances = self._chances.standard_exponential(len(labels))
        is_drawn = np.array([wait.is_drawn for wait in waits], bool)
        return np.where(is_drawn, amounts * chances, amounts)


def _wait(text: str, units: set[bool]) -> Wait:
    """Return the time that a text gives, and add whether its unit is a second."""
    if text == NEVER:
        return Wait(math.inf)
    found = AMOUNT.fullmatch(text.removeprefix(DRAWN))
    if found is None:
        raise DelayError(
            f"{text!r} is no delay: give a number of examples (500), a time (30s, 5m), either "
            "with exp: before it, or never"
        )
    units.add(found[2] is not None)
    return Wait(float(found[1]) * UNITS.get(found[2], 1.0), text.startswith(DRAWN))
