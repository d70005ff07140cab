"""When each of many threads may call a server that counts calls."""

from __future__ import annotations

import threading
import time


class Stopped(Exception):
    """The work was called off while somebody waited."""


class Pace:
    """Gives out turns, evenly spaced.

    Args:
        per_minute: most turns in a minute.
    """

    def __init__(self, per_minute: float) -> None:
        self._gap = 60 / per_minute
        self._lock = threading.Lock()
        self._next = self._held = 0.0
        self._stop = threading.Event()

    def wait_turn(self) -> None:
        """Return when it is the caller's turn. Raises ``Stopped``."""
        with self._lock:
            turn = max(time.monotonic(), self._next)
            self._next = turn + self._gap
        self.rest(0)
        while (left := max(turn, self._held) - time.monotonic()) > 0:
            self.rest(left)

    def hold(self, seconds: float) -> None:
        """Nobody's turn comes for so long, because the server asks for it."""
        with self._lock:
            self._held = max(self._held, time.monotonic() + seconds)
            self._next = max(self._next, self._held)

    def rest(self, seconds: float) -> None:
        """Wait. Raises ``Stopped``."""
        if self._stop.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        """Whoever waits, now or later, gets ``Stopped``."""
        self._stop.set()
