"""The choice of inputs and task, while the settings leave them to the log.

A model is *open* until something is recorded. If its settings name neither a schema nor a shape,
the first examples decide between dense features and rows. If they name neither a task nor classes,
the first labels decide between classes and numbers. The log's server keeps what they were (see
`service.log.keys.Inputs`), so that clients of two kinds are never both accepted. A recorded spec,
in a checkpoint or in the first cut, decides before that.
"""

from collections.abc import Collection, Sequence

from service.fold.spec import Spec
from service.log.entries import RawEntry, inputs_of
from service.log.errors import LogError
from service.log.keys import Inputs
from service.log.log import Log
from service.settings import INPUTS, TASK


class AnotherModelError(LogError):
    """The log is of another model than the open one, which has to give way to that.

    Args:
        message: says how it differs.
        spec: of the other model, if it is recorded.
        claimed: what the other model learns from if it begins, as `service.log.log.Log.claim` has
            it.
    """

    def __init__(self, message: str, spec: Spec | None = None, claimed: str = "") -> None:
        super().__init__(message)
        self.spec, self.claimed = spec, claimed


def check_spec(own: Spec, recorded: Spec, what: str, is_open: bool) -> None:
    """Make sure that a recorded model is the own one.

    Args:
        own, recorded: their specs.
        what: names where it is recorded.
        is_open: whether the own one may give way.

    Raises:
        LogError: it is not; AnotherModelError if the own one may give way.
    """
    if differing := own.differences(recorded):
        listed = ", ".join(f"{k} is {there} there and {here} here" for k, there, here in differing)
        message = f"{what} is of another model: {listed}"
        if is_open:
            raise AnotherModelError(message, recorded)
        raise LogError(f"{message}. Use its settings, or another --data-dir or --name")


async def is_unclaimed(
    log: Log, own: Spec, opens: Collection[str], found: Sequence[RawEntry]
) -> bool:
    """Claim a log for an open model; return whether nobody has claimed it.

    Args:
        log: without a recorded cut.
        own: the spec of the model.
        opens: what the settings leave open, of INPUTS and TASK.
        found: its first entries; those without examples claim nothing.

    Raises:
        AnotherModelError: it is claimed for another kind of model.
    """
    inputs = next(filter(None, (inputs_of(fields) for _, fields in found)), "")
    if not (claimed := await log.claim(inputs)):
        return True
    mine = Inputs.FEATURES if own.shape else Inputs.ROWS
    kind = kind_of(claimed) if INPUTS in opens else mine
    has_numbers = are_numbers(claimed) if TASK in opens else own.predicts.is_numeric
    if (kind, has_numbers) != (mine, own.predicts.is_numeric):
        claimed = kind + (Inputs.OF_NUMBERS if has_numbers else "")
        raise AnotherModelError(f"the first examples are {SHOWN[claimed]}", claimed=claimed)
    return False


def kind_of(claimed: str) -> str:
    """Return the inputs that a log is claimed for."""
    return claimed.removesuffix(Inputs.OF_NUMBERS)


def are_numbers(claimed: str) -> bool:
    """Return whether a log is claimed for labels that are numbers."""
    return claimed.endswith(Inputs.OF_NUMBERS)


SHOWN = {
    Inputs.FEATURES: "dense features",
    Inputs.ROWS: "rows with named columns",
    Inputs.FEATURES + Inputs.OF_NUMBERS: "dense features whose labels are numbers",
    Inputs.ROWS + Inputs.OF_NUMBERS: "rows with named columns whose labels are numbers",
}
"""Words for what the log can be claimed for."""
