"""The task: what is predicted, of which labels.

Settings read this module, so it imports neither torch nor the losses
(`service.fold.optimizers.loss_of` has the loss of a task).
"""

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["multiclass", "binary", "regression", "quantile"]
KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
AUTO = "auto"
QUANTILES = (0.1, 0.5, 0.9)
"""The quantiles of a task that names none."""
MAX_QUANTILES = 99


@dataclass(frozen=True)
class Task:
    """A task: what a model predicts.

    >>> Task.parse("quantile:0.1,0.9").quantiles
    (0.1, 0.9)
    """

    kind: Kind = "multiclass"
    quantiles: tuple[float, ...] = ()
    """Ascending, each within (0, 1); empty unless the kind is ``quantile``."""

    @classmethod
    def parse(cls, text: str) -> "Task":
        """Return the task that a text names: a kind, or ``quantile:0.1,0.5,0.9``.

        Raises:
            ValueError: it names none; the message says what is wrong.
        """
        name, colon, rest = text.strip().partition(":")
        kind = KINDS.get(name)
        if kind is None or (colon and kind != "quantile"):
            raise ValueError(
                f"choose {AUTO}, binary, multiclass, regression or quantile:0.1,0.5,0.9"
            )
        if kind != "quantile":
            return cls(kind)
        try:
            found = tuple(float(part) for part in rest.split(",")) if colon else QUANTILES
        except ValueError as error:
            raise ValueError(f"{rest!r} is no list of quantiles, such as 0.1,0.5,0.9") from error
        if not all(0.0 < quantile < 1.0 for quantile in found):
            raise ValueError("each quantile must lie between 0 and 1")
        if list(found) != sorted(set(found)):
            raise ValueError("give quantiles in ascending order, each once")
        if len(found) > MAX_QUANTILES:
            raise ValueError(f"at most {MAX_QUANTILES} quantiles")
        return cls(kind, found)

    def __str__(self) -> str:
        """Return the text that `parse` takes."""
        if not self.quantiles:
            return self.kind
        return f"{self.kind}:{','.join(f'{quantile:g}' for quantile in self.quantiles)}"

    @property
    def is_numeric(self) -> bool:
        """True if labels are numbers, not classes."""
        return self.kind in ("regression", "quantile")

    def outputs(self, classes: int) -> int:
        """Return how many outputs a model has.

        Args:
            classes: number of classes, with room for more.
        """
        if self.kind == "multiclass":
            return classes
        return len(self.quantiles) or 1


CLASSES = Task()
"""The task of a model that names none."""
