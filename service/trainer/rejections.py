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
        self._steps: list[AppliedBatch] = []
        """Not recorded yet; those that were kept are still among them."""

    def remember(self, applied: AppliedBatch) -> None:
        """Remember a step."""
        if applied.report.kept is not True:
            self._steps.append(applied)
        if len(self._steps) % READ_EVERY == 0:
            self._forget_kept()

    def _forget_kept(self) -> None:
        if self._steps:
            kept = torch.stack([torch.as_tensor(a.report.kept) for a in self._steps]).tolist()
            self._steps = [a for a, is_kept in zip(self._steps, kept, strict=True) if not is_kept]

    async def record(self, log: Log) -> None:
        """Record the skipped batches; wait for the device.

        Raises:
            LogUnavailable: the log did not confirm; all of them are remembered.
        """
        self._forget_kept()
        if steps := self._steps[:]:
            await log.record_skipped(list(map(_row, steps)))
            del self._steps[: len(steps)]


def _row(skipped: AppliedBatch) -> list[str]:
    report = skipped.report
    reason = (
        f"the batch was skipped: its loss is {float(report.loss):.6g}, or its gradient is not "
        "finite, or the model raised"
    )
    begin, end = str(skipped.begin), str(skipped.end)
    return [str(report.version), begin, end, str(skipped.examples), reason]
