"""The time that a run still takes, corrected by how wrong its estimate has been so far."""

import time


class Forecast:
    """What is left of a run."""

    def __init__(self) -> None:
        self._planned_seconds = self._left_seconds = self._lasting_seconds = 0.0
        self._spent_seconds = 0.0
        self._since = time.monotonic()

    def expect(self, planned_seconds: float, lasting_seconds: float) -> None:
        """Add what stands on the speed that the probe found, and what lasts so long on any machine."""
        self._planned_seconds += planned_seconds
        self._left_seconds += planned_seconds
        self._lasting_seconds += lasting_seconds

    def passed(self, planned_seconds: float) -> None:
        """Note that a piece of the plan is done."""
        self._left_seconds = max(0.0, self._left_seconds - planned_seconds)
        now = time.monotonic()
        self._spent_seconds, self._since = self._spent_seconds + now - self._since, now

    def lasted(self, seconds: float) -> None:
        """Note that a piece is done of what lasts so long on any machine."""
        self._lasting_seconds = max(0.0, self._lasting_seconds - seconds)
        self._since = time.monotonic()

    def planned_left(self) -> float:
        """Return the time left as it was planned, in seconds."""
        return self._left_seconds + self._lasting_seconds

    def seconds_left(self) -> float:
        """Return the time left, in seconds."""
        done = self._planned_seconds - self._left_seconds
        # As if the first part of the plan had gone as planned: one slow load must not double the rest.
        trusted = 0.1 * self._planned_seconds
        factor = (self._spent_seconds + trusted) / (done + trusted) if done else 1.0
        return self._left_seconds * factor + self._lasting_seconds
