"""Batches that were left out, until the log has taken note of where they lie in it."""

from dataclasses import dataclass

import torch

from service.entries import Position
from service.fold import Report
from service.log import Log


@dataclass(frozen=True)
class Rejected:
    """A batch that may have been left out, and its place in the log."""

    begin: Position
    end: Position
    report: Report
    examples: int


class Rejections:
    """Notes steps, and puts aside the ranges of those that were not taken.

    A range is noted before a checkpoint lies behind it; replay notes it again, and the log knows
    each by the version of the model.

    Args:
        on_host: whether a report can be read at once; else all are kept until `put_aside`.
    """

    def __init__(self, on_host: bool) -> None:
        self._on_host = on_host
        self._noted: list[Rejected] = []

    def __bool__(self) -> bool:
        return bool(self._noted)

    def note(self, begin: Position, end: Position, report: Report, examples: int) -> None:
        """Remember a step."""
        if not self._on_host or not report.kept:
            self._noted.append(Rejected(begin, end, report, examples))

    async def put_aside(self, log: Log) -> None:
        """Write down what was left out; waits for the device.

        Raises:
            RedisError, OSError: the log cannot be reached; all is remembered.
        """
        noted = list(self._noted)
        if not noted:
            return
        kept = torch.stack([r.report.kept for r in noted]).tolist()
        left_out = [r for r, was_kept in zip(noted, kept, strict=True) if not was_kept]
        if left_out:
            await log.put_aside([
                [
                    str(r.report.version), str(r.begin), str(r.end), str(r.examples),
                    _reason(float(r.report.loss)),
                ]
                for r in left_out
            ])  # fmt: skip
        del self._noted[: len(noted)]


def _reason(loss: float) -> str:
    return f"the batch was left out: its loss is {loss:.6g}, or its gradient is not finite"
