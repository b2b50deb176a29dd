"""Waits between the tries of one request."""

import random

FIRST_WAIT = 0.1
MAX_WAIT = 5.0
PATIENCE = 3
"""Tries of a request before the user is notified: a busy receiver refuses one now and then."""


class Backoff:
    """Seconds to wait before each further try: they double, with jitter.

    Args:
        jitter: draws a factor of 0.5 to 1 for each wait.
    """

    def __init__(self, jitter: random.Random) -> None:
        self._jitter, self._wait = jitter, FIRST_WAIT
        self.retries = 0
        """Waits so far."""

    def next(self, after: float | None = None) -> float:
        """Return the seconds to wait now.

        Args:
            after: seconds that the receiver asked to wait, or None.
        """
        wait = after if after is not None else self._wait * self._jitter.uniform(0.5, 1)
        self._wait = min(2 * self._wait, MAX_WAIT)
        self.retries += 1
        return wait
