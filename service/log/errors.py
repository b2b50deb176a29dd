"""Errors of the log."""

from streams.errors import FunnelError


class LogError(FunnelError):
    """The log cannot be used as it is; the message says why and what to do."""


class LogUnavailable(LogError):
    """The log cannot be reached or did not confirm; what was sent may or may not be in it."""


class FencedError(LogError):
    """Another trainer has taken over the log."""


class GapError(LogError):
    """The log does not reach back to the model's position."""

    ADVICE = "Acknowledged entries are missing; to go on without them, start once with --accept-gap"

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what}. {self.ADVICE}")


class BlankError(GapError):
    """There is no model yet, and the log no longer reaches back to its beginning.

    Args:
        cut: number of the last recorded cut.
    """

    ADVICE = (
        "Is DATA_DIR mounted, and is it, or STATE, the right one? Put its checkpoints back, or "
        "those of a backup; --accept-gap would begin with an empty model"
    )

    def __init__(self, cut: int) -> None:
        super().__init__(
            f"there is no checkpoint, but the log was learned up to cut {cut} and then trimmed"
        )


class LogFullError(GapError):
    """The log has given out its highest id."""

    ADVICE = "It can take no more entries; to go on with a new log, start once with --accept-gap"

    def __init__(self) -> None:
        super().__init__("the log is full: an entry with the highest possible id was added to it")


class ForeignError(LogUnavailable):
    """A key of the log holds what another program wrote; learning waits until that is gone."""


class CutError(LogError):
    """A record that is no cut."""


class DamagedCutError(CutError):
    """A cut that is not what was recorded."""


def damaged(how: str, log: str, cuts: str) -> LogError:
    """Return the error of a log whose cuts and entries do not fit together.

    Args:
        how: what does not fit.
        log, cuts: keys of the entries and of the cuts.
    """
    return LogError(
        f"the log's record of what was learned is damaged: {how}. Restore the log from its backup; "
        f"or delete {log} and {cuts}, and what is in them, and start once with --accept-gap"
    )


class Stopped(Exception):
    """Work that is not done: the service stops, or the trainer waits, has halted or stands by."""
