"""Sends one tracker what it is offered, on a thread of its own: whatever its client does, the run goes on.

What fails is tried again a little later, and given up after the last try; what finds no room is given up at once. The
first failure is a warning, all are counted, and `outcome` says at the end of the run what became of them. What a
tracker has is kept in the run directory, so that a run that goes on logs no step twice.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config import ConfigError
from orchestrator.run.folders import write_whole
from orchestrator.run.trackers.tracker import Tracker

logger = logging.getLogger(__name__)

ROOM = 10_000
"""Entries that wait at most: a run's rows since a tracker went away."""
TRY_AGAIN_S = (5.0, 60.0)
"""Waits between the tries of an entry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Something of *step* to send; those of one *kind* come in the order of their steps."""

    kind: str
    step: int
    send: Callable[[Tracker], None]


class Memory:
    """By what a tracker knows the run, and the last step of each kind of entry that it has; in *path*."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if the file is damaged."""
        self._path = path
        self.id: str | None = None
        self._last: dict[str, int] = {}
        if path.exists():
            try:
                known = json.loads(path.read_text())
                self.id, self._last = known["id"], dict(known["last"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"--resume: {path} cannot be read ({error!r}); remove it, and the run is logged as a new one there"
                ) from error

    def has(self, entry: Entry) -> bool:
        return entry.step <= self._last.get(entry.kind, -1)

    def add(self, entry: Entry) -> None:
        self._last[entry.kind] = entry.step
        self._write()

    def opened(self, run_id: str) -> None:
        self.id = run_id
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        write_whole(self._path, json.dumps({"id": self.id, "last": self._last}, indent=2) + "\n")


class Sender:
    """To the tracker *name*, which *open_run* opens with the id that it gave before."""

    def __init__(self, name: str, open_run: Callable[[str | None], Tracker], memory: Memory) -> None:
        self.name = name
        self._open_run = open_run
        self._memory = memory
        self._tracker: Tracker | None = None
        self._waiting: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._ok = False
        self._offered = self._lost = self._failures = 0
        self._cause = ""
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)

    def offer(self, entry: Entry) -> None:
        """Have it sent, unless the tracker has it; returns at once."""
        if self._memory.has(entry):
            return
        with self._changed:
            self._offered += 1
            if len(self._waiting) >= ROOM:
                self._lost += 1
                return
            self._waiting.append(entry)
            self._changed.notify()
        if self._thread.ident is None:  # only now: before the first one, there may be nothing to log of this run
            self._thread.start()

    def end(self, ok: bool) -> None:
        """Nothing more will be offered: send what waits, once, and finish."""
        self._ok = ok
        with self._changed:
            self._ending.set()
            self._changed.notify()

    def outcome(self, deadline: float) -> str | None:
        """After `end`: wait until *deadline*, by `time.monotonic`, and say what went wrong, if anything did."""
        if self._thread.ident is None:
            return None
        self._thread.join(max(0.0, deadline - time.monotonic()))
        missing = self._lost + len(self._waiting)
        cause = f" (last: {self._cause})" if self._cause else ""
        if self._thread.is_alive():
            return f"tracker {self.name} did not end in time; it lacks {missing} of {self._offered} entries{cause}"
        if missing:
            return f"tracker {self.name} lacks {missing} of {self._offered} entries{cause}"
        if self._failures:
            return f"tracker {self.name} failed {self._failures} times, and has all {self._offered} entries{cause}"
        return None

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            sent = self._memory.has(entry) or self._tried(lambda entry=entry: self._send(entry))  # type: ignore[misc]
            if not sent and self._ending.is_set():
                break  # the rest would fail as well
            with self._changed:
                self._waiting.popleft()
                self._lost += not sent
        if self._tracker is not None:
            self._tried(lambda: self._tracker.finish(self._ok))  # type: ignore[union-attr]

    def _next(self) -> Entry | None:
        """The oldest that waits; None when all are sent and none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending.is_set())
            return self._waiting[0] if self._waiting else None

    def _send(self, entry: Entry) -> None:
        if self._tracker is None:
            tracker = self._open_run(self._memory.id)
            self._memory.opened(tracker.id)
            self._tracker = tracker
        entry.send(self._tracker)
        self._memory.add(entry)

    def _tried(self, do: Callable[[], None]) -> bool:
        """Whether *do* went well, now or later."""
        for wait_s in (*TRY_AGAIN_S, None):
            try:
                do()
                return True
            except Exception as error:  # of any client, for any cause; said, counted, and no reason to end a run
                self._failed(error)
            if wait_s is None or self._ending.is_set():
                return False
            self._ending.wait(wait_s)
        return False

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._cause = f"{type(error).__name__}: {error}"
        if self._failures == 1:
            logger.warning("tracker %s failed, and is tried again; the run goes on: %s", self.name, self._cause)
