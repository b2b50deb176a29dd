"""The choice between dense features and rows, while the settings leave it to the log.

A model whose settings name neither a schema nor a shape is *open* until something is recorded: the
first examples decide. The log's server keeps their kind (see `service.log.keys.Inputs`), so that
clients of both kinds are never both accepted. A recorded spec, in a checkpoint or in the first cut,
decides before that.
"""

from collections.abc import Sequence

from service.fold.spec import Spec
from service.log.entries import RawEntry, inputs_of
from service.log.errors import LogError
from service.log.keys import Inputs
from service.log.log import Log


class AnotherModelError(LogError):
    """The log is of another model than the open one, which has to give way to that.

    Args:
        message: says how it differs.
        spec: of the other model; None for one of rows that begins.
    """

    def __init__(self, message: str, spec: Spec | None = None) -> None:
        super().__init__(message)
        self.spec = spec


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
        message = f"{what} is of another model: {listed}. Use its settings, or another --data-dir"
        raise AnotherModelError(message, recorded) if is_open else LogError(message)


async def is_unclaimed(log: Log, found: Sequence[RawEntry] = ()) -> bool:
    """Claim a log for an open model; return whether nobody has claimed it.

    Args:
        log: without a recorded cut.
        found: its first entries; those without examples claim nothing.

    Raises:
        AnotherModelError: it is claimed for rows.
    """
    inputs = next(filter(None, (inputs_of(fields) for _, fields in found)), "")
    claimed = await log.claim(inputs) if inputs or not found else ""
    if claimed == Inputs.ROWS:
        raise AnotherModelError("the first examples are rows with named columns")
    return not claimed
