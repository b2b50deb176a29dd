"""Skipped batches, until their ranges are recorded in the log."""

import torch

from service.log.log import Log
from service.trainer.replica import AppliedBatch

READ_EVERY = 1_024
"""Steps between readings of a device."""


class Rejections:
    """Remembers steps, and records the ranges of the batches that were skipped.

    A range is recorded before a checkpoint is written after it. A replay records it again; the log
    recognizes it by the version of the model.
    """

    def __init__(self) -> None:
        self._unread: list[AppliedBatch] = []
        self._skipped: list[list[str]] = []

    def remember(self, applied: AppliedBatch) -> None:
        """Remember a step."""
        if applied.report.kept is not True:
            self._unread.append(applied)
        if len(self._unread) >= READ_EVERY:
            self._read()

    def _read(self) -> None:
        if self._unread:
            kept = torch.stack([torch.as_tensor(a.report.kept) for a in self._unread]).tolist()
            skipped = [a for a, is_kept in zip(self._unread, kept, strict=True) if not is_kept]
            self._skipped += map(_row, skipped)
            self._unread.clear()

    async def record(self, log: Log) -> None:
        """Record the skipped batches; wait for the device.

        Raises:
            LogUnavailable: the log did not confirm; all of them are remembered.
        """
        self._read()
        if rows := self._skipped[:]:
            await log.record_skipped(rows)
            del self._skipped[: len(rows)]


def _row(skipped: AppliedBatch) -> list[str]:
    report = skipped.report
    reason = (
        f"the batch was skipped: its loss is {float(report.loss):.6g}, or its gradient is not "
        "finite, or the model raised"
    )
    begin, end = str(skipped.begin), str(skipped.end)
    return [str(report.version), begin, end, str(skipped.examples), reason]
