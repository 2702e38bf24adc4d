"""What a run does now, and what its time went into: pure arithmetic on a clock.

A run is in exactly one phase at a time, and each second of a phase goes to one bucket, so that the four buckets always
sum to the time since the run began:

    productive   the learner makes a step
    idle         the learner waits for groups, or the run is paused
    wasted       the learner is lost: the step that it was in, and until others stand where it stood
    overhead     all else that the learner does not learn in: start, publish, checkpoint, evaluation

A step that is being made is in none of them before it ends: it may turn out wasted. *Overlap* is the time in which
groups were sampled while a step was made: seen, not configured.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class Bucket(StrEnum):
    """Where a second went."""

    PRODUCTIVE = "productive"
    OVERHEAD = "overhead"
    IDLE = "idle"
    WASTED = "wasted"


class Phase(StrEnum):
    """What the run's learning side does."""

    STARTING = "starting"
    WAITING = "waiting"
    LEARNING = "learning"
    PUBLISHING = "publishing"
    CHECKPOINTING = "checkpointing"
    EVALUATING = "evaluating"
    SAVING = "saving"
    RECOVERING = "recovering"


BUCKETS = dict.fromkeys(Phase, Bucket.OVERHEAD) | {
    Phase.LEARNING: Bucket.PRODUCTIVE,
    Phase.WAITING: Bucket.IDLE,
    Phase.RECOVERING: Bucket.WASTED,
}


class Activity:
    """That of one run, from when it is made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phase = Phase.STARTING
        self._is_recovering = False
        self._since = self._joint_since = clock()
        self._settled = dict.fromkeys(Bucket, 0.0)
        self._taken = dict.fromkeys(Bucket, 0.0)
        self._sampling = 0
        self._overlap_s = self._overlap_taken = 0.0

    @property
    def phase(self) -> Phase:
        return Phase.RECOVERING if self._is_recovering else self._phase

    def enter(self, phase: Phase) -> None:
        """While the learner recovers, this is what it will do then."""
        self._turn()
        self._phase = phase

    def lost(self) -> None:
        """The learner is: the step that it was in was for nothing."""
        if not self._is_recovering:
            self._turn(Bucket.WASTED if self._phase is Phase.LEARNING else None)
            self._is_recovering = True

    def recovered(self) -> None:
        """The learner stands where it stood."""
        self._turn()
        self._is_recovering = False

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """A group is being sampled meanwhile."""
        self._settle_overlap()
        self._sampling += 1
        try:
            yield
        finally:
            self._settle_overlap()
            self._sampling -= 1

    def seconds(self) -> dict[Bucket, float]:
        """Of each bucket since the run began; what may turn out wasted is not in them yet. They never become fewer."""
        if self.phase is not Phase.LEARNING:
            self._turn()
        return dict(self._settled)

    def overlap_s(self) -> float:
        """Seconds since the run began."""
        self._settle_overlap()
        return self._overlap_s

    def take(self) -> dict[str, float]:
        """`productive_s` ... `wasted_s` and `overlap_s` since the last call. The four sum to the time since then."""
        self._turn()
        spent = {f"{bucket}_s": self._settled[bucket] - self._taken[bucket] for bucket in Bucket}
        overlap_s = self.overlap_s() - self._overlap_taken
        self._taken, self._overlap_taken = dict(self._settled), self._overlap_s
        return spent | {"overlap_s": overlap_s}

    def _turn(self, bucket: Bucket | None = None) -> None:
        """What the phase has taken since it was last looked at goes to its bucket, or to the one that is given."""
        self._settle_overlap()
        now = self._clock()
        self._settled[bucket or BUCKETS[self.phase]] += now - self._since
        self._since = now

    def _settle_overlap(self) -> None:
        now = self._clock()
        if self._sampling and self.phase is Phase.LEARNING:
            self._overlap_s += now - self._joint_since
        self._joint_since = now
