"""Batches that were left out, until the log has taken note of where they lie in it."""

from dataclasses import dataclass

import torch

from service.fold.report import Report
from service.log.log import Log
from service.log.position import Position

READ_EVERY = 1_024
"""Steps between readings of a device."""


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
    """

    def __init__(self) -> None:
        self._unread: list[Rejected] = []
        self._left_out: list[Rejected] = []

    def note(self, begin: Position, end: Position, report: Report, examples: int) -> None:
        """Remember a step."""
        if report.kept is not True:
            self._unread.append(Rejected(begin, end, report, examples))
        if len(self._unread) >= READ_EVERY:
            self._read()

    def _read(self) -> None:
        if self._unread:
            kept = torch.stack([torch.as_tensor(r.report.kept) for r in self._unread]).tolist()
            self._left_out += [r for r, k in zip(self._unread, kept, strict=True) if not k]
            self._unread.clear()

    async def put_aside(self, log: Log) -> None:
        """Write down what was left out; waits for the device.

        Raises:
            RedisError, OSError: the log cannot be reached; all is remembered.
        """
        self._read()
        if not self._left_out:
            return
        rows = [
            [
                str(r.report.version), str(r.begin), str(r.end), str(r.examples),
                _reason(float(r.report.loss)),
            ]
            for r in self._left_out
        ]  # fmt: skip
        await log.put_aside(rows)
        del self._left_out[: len(rows)]


def _reason(loss: float) -> str:
    return (
        f"the batch was left out: its loss is {loss:.6g}, or its gradient is not finite, or the "
        "model raised"
    )
