"""How a run stands, in words: a headline, alarms, and hints where nothing is alarming. Pure; the clock is handed in.

An alarm says that training goes wrong; a hint, how it would go faster. Both look at the last RECENT steps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from orchestrator.report.run_data import Event, Row

RECENT = 10
STALLED = 6.0
"""Times the median step without a new one; and never before LEAST_STALL_S: an evaluation goes on beside the steps."""
LEAST_STALL_S = 30.0
MOST_EQUAL = 0.5
MOST_CUT_OFF = 0.25
MOST_SAMPLER_KL = 1e-2
"""Runs have 1e-4 to 1e-3; with weights that were not taken over it is far more."""
LOST_IN_A_ROW = 3
IDLE, BUSY = 0.3, 0.05
"""Shares of a step that the learner waits: an idle one, and one that never waits."""
FULL = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Of a run that shall make so many *steps*. *running*: its driver has just said so; *now* in seconds since 1970."""

    rows: Sequence[Row]
    events: Sequence[Event]
    steps: int
    max_staleness: int
    running: bool
    now: float

    @property
    def step(self) -> int:
        """The newest that was made."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def last_at(self) -> float | None:
        """When the newest step was served, or if that is later, when this driver began; None where nobody said so."""
        times = [event["at"] for event in self.events if event["event"] in ("served", "began")]
        return times[-1] if times else None

    def recent(self, key: str) -> float | None:
        """The mean of a column over the last steps; None where no row has it."""
        values = [row[key] for row in self.rows[-RECENT:] if key in row]
        return fmean(values) if values else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """*hints* only where there is no alarm."""

    headline: str
    alarms: tuple[str, ...]
    hints: tuple[str, ...]


Rule = Callable[[Standing], Iterator[str]]


def advise(standing: Standing) -> Advice:
    alarms = tuple(text for rule in ALARMS for text in rule(standing))
    hints = () if alarms else tuple(text for rule in HINTS for text in rule(standing))
    return Advice(headline=headline(standing), alarms=alarms, hints=hints)


def headline(standing: Standing) -> str:
    """Where the run is, and what it last had.

    >>> headline(Standing(rows=[], events=[], steps=20, max_staleness=1, running=False, now=0.0))
    'No step of 20 is made.'
    """
    step, steps = standing.step, standing.steps
    age = "" if standing.last_at is None else f" {in_words(standing.now - standing.last_at)} ago"
    if not step:
        return f"No step of {steps} is made{' yet' if standing.running else ''}."
    last = standing.rows[-1]
    has = f"reward {last['reward']:+.2f}" if "reward" in last else f"loss {last['loss']:.4f}"
    if step >= steps:
        return f"All {steps} steps are made: {has}."
    if standing.running:
        return f"Step {step} of {steps} was made{age or ' just now'}; one takes {in_words(_step_s(standing))}: {has}."
    return f"Stopped at step {step} of {steps}{age}: {has}. The same command with --resume goes on."


def in_words(seconds: float) -> str:
    """
    >>> in_words(0.72), in_words(42.0), in_words(600.0), in_words(3 * 3600 + 240), in_words(200_000)
    ('0.7 s', '42 s', '10 min', '3 h 4 min', '2 d 7 h')
    """
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, hours, days = (int(seconds // unit) for unit in (60, 3600, 86400))
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} d {hours % 24} h"


def _step_s(standing: Standing) -> float:
    """The first step of a driver has more to do than others: a median."""
    return median(row["step_s"] for row in standing.rows)


def _stalled(it: Standing) -> Iterator[str]:
    if not it.running or not 0 < it.step < it.steps or it.last_at is None:
        return
    age, usual = it.now - it.last_at, _step_s(it)
    if age > max(STALLED * usual, LEAST_STALL_S):
        yield (
            f"No step for {in_words(age)}, {age / usual:.0f} times the median step: the run waits for {_waits_for(it)}."
        )


def _waits_for(it: Standing) -> str:
    """The stage at which the step behind the newest stands."""
    done = {event["event"]: event.get("step", event.get("version")) for event in it.events}
    if done.get("trained") == it.step + 1:
        return f"version {it.step + 1} to be taken over by all rollout workers"
    if done.get("taken") == it.step + 1:
        return f"the learner, which makes step {it.step + 1}"
    return "groups: rollout or reward workers"


def _no_signal(it: Standing) -> Iterator[str]:
    share = it.recent("with_signal")
    if share is not None and 1 - share > MOST_EQUAL:
        yield (
            f"{1 - share:.0%} of the groups have equal rewards and teach nothing: prompts are too easy or too hard, or "
            "the temperature too low."
        )


def _cut_off(it: Standing) -> Iterator[str]:
    share = it.recent("cut_off")
    if share is not None and share > MOST_CUT_OFF:
        yield f"{share:.0%} of the answers are cut off: rollout.max_answer_tokens is too small for what is sampled."


def _mismatch(it: Standing) -> Iterator[str]:
    found = it.recent("sampler_kl")
    if found is not None and not found <= MOST_SAMPLER_KL:
        yield (
            f"Sampler and learner disagree: sampler_kl is {found:.2g}, where 0.0001 to 0.001 is usual; look at the "
            "strips of log-prob differences, and whether workers serve the version they say."
        )


def _not_finite(it: Standing) -> Iterator[str]:
    if it.rows and not all(math.isfinite(it.rows[-1].get(key, 0.0)) for key in ("loss", "grad_norm")):
        yield "The last loss or gradient is not finite."


def _lost(it: Standing) -> Iterator[str]:
    lost: list[str] = []
    for event in it.events:
        if event["event"] == "ended":
            lost.append(event["worker"])
        elif event["event"] in ("trained", "began"):
            lost = []
    if len(lost) >= LOST_IN_A_ROW and it.running:
        yield f"{len(lost)} workers were lost since the last step ({', '.join(dict.fromkeys(lost))}): see the events."


def _who_waits(it: Standing) -> Iterator[str]:
    """Samples as old as they may be, and still the learner waits: sampling cannot keep up; and the other way round."""
    wait_s, step_s, age = it.recent("wait_s"), it.recent("step_s"), it.recent("staleness")
    if wait_s is None or not step_s or age is None:
        return
    share, oldest = wait_s / step_s, age >= 0.9 * it.max_staleness
    if share > IDLE:
        at_cap = ", though samples are as old as they may be" if oldest and it.max_staleness else ""
        yield f"The learner waits for groups {share:.0%} of the time{at_cap}: more rollout workers would help."
    elif share < BUSY and oldest and it.max_staleness:
        yield "The learner never waits, and sampling is held back by the window: fewer rollout workers would do."


def _scoring_full(it: Standing) -> Iterator[str]:
    share = it.recent("scoring_full")
    if share is not None and share > FULL:
        yield f"The reward workers are full {share:.0%} of the time: more of them, or a rule that costs less."


ALARMS: tuple[Rule, ...] = (_stalled, _lost, _not_finite, _mismatch, _no_signal, _cut_off)
HINTS: tuple[Rule, ...] = (_who_waits, _scoring_full)
