"""How busy something is: seconds in which a count stood above zero."""

import time


class Busy:
    """Counts seconds in which at least one `with` block of it was open."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._open = 0
        self._since = 0.0

    def __enter__(self) -> None:
        if not self._open:
            self._since = time.monotonic()
        self._open += 1

    def __exit__(self, *error: object) -> None:
        self._open -= 1
        if not self._open:
            self._seconds += time.monotonic() - self._since

    def take(self) -> float:
        """Seconds since the last call."""
        now = time.monotonic()
        if self._open:
            self._seconds += now - self._since
            self._since = now
        seconds, self._seconds = self._seconds, 0.0
        return seconds
