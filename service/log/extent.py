"""Whether the log still reaches back to where a model is; XREAD is silent about gaps."""

from service.log.log import Extent, GapError
from service.log.position import TOP, Position


def check_reach(extent: Extent, name: str, position: Position, entries: int) -> None:
    """Make sure that the log still holds everything behind a position.

    Args:
        extent: how far the log reaches now.
        name: the uuid of the log that the position is in.
        position: how far the model is.
        entries: entries wholly before it, since the log began.

    Raises:
        GapError: entries are missing, or it is another log.
    """
    if extent.uuid != name:
        raise GapError(
            "this is another log than the model was learned from (it was flushed, restored or "
            f"replaced): its uuid is {extent.uuid}, expected {name}"
        )
    if extent.last < position.entry:
        raise GapError(f"the log ends at {extent.last}, before the model's position {position}")
    if extent.last == TOP:
        raise GapError(
            f"the log is full: an entry with the highest possible id {TOP} was added to it"
        )
    behind = extent.added - entries
    if behind < 0:
        raise GapError(
            f"the log was put back to an older state: {extent.added} entries were ever added, the "
            f"model has learned {entries}"
        )
    if extent.first is None or extent.first > position.entry:
        if position.taken is not None:
            raise GapError(f"entry {position.entry}, which is learned in part, is gone")
        if extent.length != behind:
            raise GapError(
                f"{behind - extent.length} entries behind the model's position {position} are "
                f"gone; the log now begins at {extent.first or extent.last}"
            )
