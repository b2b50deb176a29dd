"""A clock that moves only when a test moves it."""

from service.process import Clock


class StillClock(Clock):
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now
