"""How many rollout workers a run should have, where `rollout.autoscale` leaves it open: the rules, without Ray, files
or a clock of their own.

Whoever looks after the workers asks at each look, every few seconds, and gets the number that shall serve from now on.
Always: it is within *min* and *max*, changes by one unless it was outside, and not again before the pause after the
last change is over. One more while the learner waits for groups, and hardly any are ready; one less while groups wait
for the learner, so many that a fleet without one worker would do. What is not known is no reason for either.

Where a step stands at a look must decide nothing: a learner waits for all of one look and for none of the next. So the
figures are means over about a step, or *hold_s* if that is longer; a fleet of another size is watched from the start.
Nor does it say anything that a learner waits for its first groups, which no worker could have sampled yet.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

GROW_ABOVE = 0.3
"""The learner waits for more than this share of the time: one worker more."""

SHRINK_BELOW = 0.02
"""The learner waits for less than this share of the time: it may be one worker less."""

FEW = 0.75
"""Hardly any groups are ready: fewer than so many steps' worth. Half of one is ready in the mean while the groups of a
step come in one by one; where more are and the learner waits all the same, it is for a long answer, which no further
worker makes shorter."""

SPARE = 1.5
"""Groups wait for the learner: those of a whole step for more of the time than so many workers are of the fleet. With
a staleness of 1, they are ready only from when the last is complete until they are taken: of four workers that have
nothing to do for a quarter of the time, one is not needed. The half is a margin."""

ENOUGH = 0.6
"""Of about one step this much must have been watched before nothing in it says that the learner waits."""

LEARNS_BELOW = 0.9
"""A learner that waited for less than this share of the time since the last look has groups to learn from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoscaleRules:
    """In seconds.

    A reason must hold for *hold_s* without a break. After any change, and after the first look, the fleet is left as it
    is for *pause_grow_s* before it grows and for *pause_shrink_s* before it shrinks: twice as long after each time in a
    row that it grew again next, up to 16 times.
    """

    hold_s: float = 30.0
    pause_grow_s: float = 60.0
    pause_shrink_s: float = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What is there at a look; None is what is not known.

    The learner waited for groups for *learner_wait_share* of the time since the last look (0 to 1). *groups_ready* are
    complete and wait for it; it takes *groups_per_step* at a time. *engine_full*: requests queue in an engine. Of the
    workers, *serving* serve and *starting* have been asked for and do not serve yet.
    """

    learner_wait_share: float | None
    groups_ready: int | None
    groups_per_step: int
    engine_full: bool | None
    serving: int
    starting: int


class Decision(NamedTuple):
    """So many shall serve. *why* is for people, and empty where nothing changes."""

    target: int
    why: str = ""


@dataclass(slots=True)
class _Watch:
    """Of one fleet. What was not seen yet counts as nothing in the means; *seen* is the mean of what is always 1."""

    target: int
    serving: int
    looked: float
    seen: float = 0.0
    waits: float = 0.0
    steps_ready: float = 0.0
    step_waits: float = 0.0
    short_since: float | None = None
    spare_since: float | None = None

    def add(self, wait_share: float, steps_ready: float, over_s: float, now: float) -> None:
        """What was seen counts for the time since the last look, out of *over_s*."""
        weight = min(1.0, (now - self.looked) / over_s)
        self.looked = now
        self.seen += weight * (1 - self.seen)
        self.waits += weight * (wait_share - self.waits)
        self.steps_ready += weight * (steps_ready - self.steps_ready)
        self.step_waits += weight * ((steps_ready >= 1) - self.step_waits)
        short = self.waits > GROW_ABOVE and self.steps_ready < FEW * self.seen
        spare = self.waits < SHRINK_BELOW and self.step_waits * self.target >= SPARE and self.seen > ENOUGH
        self.short_since = _since(self.short_since, short, now)
        self.spare_since = _since(self.spare_since, spare, now)


@dataclass(slots=True)
class Autoscaler:
    """That of one run, which shall have *min* to *max* rollout workers."""

    min: int
    max: int
    rules: AutoscaleRules = field(default_factory=AutoscaleRules)
    _changed: float = 0.0
    _shrank: bool = False
    _taken_back: int = 0
    _watch: _Watch | None = None
    _ready: int = 0
    _took: float | None = None
    _step_s: float | None = None

    def look(self, seen: Observation, target: int, now: float) -> Decision:
        """How many shall serve, where *target* shall so far. A target that somebody else has set is a change, too."""
        assert 1 <= self.min <= self.max, (self.min, self.max)
        if self._watch is None or self._watch.target != target:
            self._changed = now
        allowed = max(self.min, min(self.max, target))
        if allowed != target:
            return self._change(allowed, f"rollout.autoscale allows {self.min} to {self.max}", seen, now)
        wait_share, ready, full = seen.learner_wait_share, seen.groups_ready, seen.engine_full
        if wait_share is None or ready is None or full is None:
            return self._leave(target, seen, now)
        self._time_step(wait_share, ready, now)
        watch = self._watch
        if watch is None or (watch.target, watch.serving) != (target, seen.serving) or self._step_s is None:
            return self._leave(target, seen, now)
        watch.add(wait_share, ready / seen.groups_per_step, max(self.rules.hold_s, self._step_s), now)
        return self._decide(watch, seen, target, now)

    def _time_step(self, wait_share: float, ready: int, now: float) -> None:
        """Those that are ready become fewer only when the learner takes a step's; the first it can take unseen."""
        first = self._step_s is None and wait_share < LEARNS_BELOW
        if self._took is None:
            self._took = now
        elif ready < self._ready or first:
            self._step_s, self._took = now - self._took, now
        self._ready = ready

    def _decide(self, watch: _Watch, seen: Observation, target: int, now: float) -> Decision:
        rules, since_change = self.rules, now - self._changed
        whole = seen.starting == 0 and seen.serving >= target  # all that were asked for are there
        if (
            _held(watch.short_since, rules.hold_s, now)
            and since_change >= rules.pause_grow_s
            and whole
            and target < self.max
        ):
            self._taken_back, self._shrank = self._taken_back + self._shrank, False
            return self._change(target + 1, f"the learner waits for groups {watch.waits:.0%} of the time", seen, now)
        if (
            _held(watch.spare_since, rules.hold_s, now)
            and since_change >= rules.pause_shrink_s * 2 ** min(4, self._taken_back)
            and not seen.engine_full  # a prompt may queue for a moment when a step's come at once: no break
            and target > self.min
        ):
            self._taken_back, self._shrank = 0 if self._shrank else self._taken_back, True
            why = f"the groups of a whole step wait for the learner {watch.step_waits:.0%} of the time"
            return self._change(target - 1, why, seen, now)
        return Decision(target)

    def _change(self, target: int, why: str, seen: Observation, now: float) -> Decision:
        self._changed = now
        return self._leave(target, seen, now)._replace(why=why)

    def _leave(self, target: int, seen: Observation, now: float) -> Decision:
        """Watch from here on."""
        self._watch = _Watch(target=target, serving=seen.serving, looked=now)
        return Decision(target)


def _since(since: float | None, holds: bool, now: float) -> float | None:
    """Since when without a break."""
    return None if not holds else now if since is None else since


def _held(since: float | None, hold_s: float, now: float) -> bool:
    return since is not None and now - since >= hold_s
