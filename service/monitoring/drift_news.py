"""Drift events are told once: in the process's log, in the history, and to a webhook."""

import logging
from collections.abc import Callable

from service.fold.drift import Event, Monitor
from service.monitoring.history import History

logger = logging.getLogger("funnel")


class DriftNews:
    """Tells what is new among the drift events; in the learner's thread.

    Args:
        history: shown every event, and again when it has changed.
        told: given each event that is found in learning.
    """

    def __init__(self, history: History, told: Callable[[Event], object]) -> None:
        self._history, self._told = history, told
        self._newest = 0
        """Id of the newest event that was told, or is old."""

    def pass_over(self, drift: Monitor) -> None:
        """Take what a replay has found for old: it was told when it was learned."""
        drift.settle()
        self._newest = sum(drift.counts.values())

    def tell(self, drift: Monitor) -> None:
        """Tell what has been found since."""
        drift.settle()
        self._history.note_drifts(event.shown() for event in drift.events)
        for event in drift.events:
            if event.id > self._newest:
                logger.info("drift, %s", event)
                self._told(event)
                self._newest = event.id
