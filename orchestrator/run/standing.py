"""How a run stands, from what lies in its directory: for people in five lines, for programs as JSON."""

import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from orchestrator.config import ConfigError
from orchestrator.run.control import OVER, OtherRelease, Status, TornFile, is_running, read_status
from orchestrator.run.folders import is_locked
from orchestrator.run.metrics import read_rows

DRIVER_LOCK = ".lock"
GONE = (*OVER, "lost")
PACE_STEPS = 10
"""The time that is left is reckoned from so many of the last steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Of the run in *folder*.

    *state* is `starting` until the workers are ready, then as the driver said last (`run.control.Status`); `hangs` if
    it lives and says nothing any more, `lost` if it was killed. What is not known yet, or is of one kind of training
    alone, is None. Times are in seconds; the reward is that of the last step, and of the first.
    """

    folder: str
    state: str
    why: str
    job: str | None = None
    release: str | None = None
    step: int = 0
    steps: int | None = None
    last_step_s_ago: float | None = None
    left_s: float | None = None
    reward: float | None = None
    first_reward: float | None = None
    loss: float | None = None
    staleness: float | None = None
    max_staleness: int | None = None
    workers: str | None = None

    @property
    def goes_on(self) -> bool:
        """Whether a driver is there that can be asked for something."""
        return self.state in ("running", "paused", "stopping")

    def lines(self) -> list[str]:
        """Five."""
        ago = "" if self.last_step_s_ago is None else f", the last {_minutes(self.last_step_s_ago)} ago"
        left = "" if self.left_s is None else f", {_minutes(self.left_s)} left"
        learned = "reward: no step yet"
        if self.reward is not None:
            learned = f"reward {self.reward:+.3f}, of the first step {self.first_reward:+.3f}"
        elif self.loss is not None:
            learned = f"loss {self.loss:.4f}"
        stale = "no step yet" if self.staleness is None else f"{self.staleness:.1f} in the mean"
        return [
            f"{self.state}{f' ({self.why})' if self.why else ''}: step {self.step} of {self.steps or '?'}{ago}{left}",
            learned,
            self.workers or ("no workers any more" if self.state in GONE else "no workers yet"),
            f"staleness: {stale}, {'?' if self.max_staleness is None else self.max_staleness} at most",
            f"run directory: {self.folder}" + (f", job {self.job}" if self.job else ""),
        ]


def look(folder: Path) -> Standing:
    """How the run in *folder* stands. Raises ConfigError where there is none, or its files are not whole."""
    lives = is_locked(folder / DRIVER_LOCK)
    if not (folder / "config.toml").exists():
        if lives:
            return Standing(folder=str(folder), state="starting", why="its workers are not ready yet")
        raise ConfigError(
            f"{folder}: holds no run that has begun: it has no config.toml; give the run directory (--out) of one"
        )
    try:
        loop = tomllib.loads((folder / "config.toml").read_text())["loop"]
        metrics = folder / "metrics.jsonl"
        rows = read_rows(metrics) if metrics.exists() else []
        status = read_status(folder)
    except (OtherRelease, TornFile) as error:
        raise ConfigError(str(error)) from error
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{folder}: its config.toml or metrics.jsonl is not whole ({error}); star-r1 doctor {folder} keeps what "
            "there is"
        ) from error
    state, why = _state(status, lives)
    last = rows[-1] if rows else {}
    step, over = int(last.get("step", 0)), state in GONE
    pace = [row["step_s"] for row in rows[-PACE_STEPS:]]
    return Standing(
        folder=str(folder.resolve()),
        state=state,
        why=why,
        job=None if status is None else status.job,
        release=None if status is None else status.release,
        step=step,
        steps=loop["steps"],
        last_step_s_ago=time.time() - metrics.stat().st_mtime if rows else None,
        left_s=median(pace) * (loop["steps"] - step) if pace and not over else None,
        reward=last.get("reward"),
        first_reward=rows[0].get("reward") if rows else None,
        loss=last.get("loss"),
        staleness=last.get("staleness"),
        max_staleness=loop["max_staleness"],
        workers=None if status is None or over else describe_workers(status),
    )


def without_folder(job: str, is_over: bool, message: str) -> Standing:
    """Of a job that has not said where its run directory is."""
    why = (message.splitlines() or ["it says nothing"])[0]
    return Standing(folder="not made", state="failed" if is_over else "starting", why=why, job=job)


def _state(status: Status | None, lives: bool) -> tuple[str, str]:
    if status is None or status.state in OVER:
        if lives:
            return "starting", "its workers are not ready yet"
        return ("lost", "no driver runs") if status is None else (status.state, status.why)
    if is_running(status):
        return status.state, status.why
    silent = f"its driver on {status.host} has said nothing for {_minutes(time.time() - status.at)}"
    if lives:
        return "hangs", f"{silent}, and is alive: star-r1 doctor"
    return "lost", f"{silent}: it was killed; the same command with --resume goes on"


def describe(status: Status) -> str:
    """In one line."""
    return f"version {status.version}: {describe_workers(status)}"


def describe_workers(status: Status) -> str:
    """By kind, and who waits for room."""
    said = []
    for name, kind in {"rollouts": status.rollouts, "scorers": status.scorers}.items():
        others = Counter(state for state in kind.workers.values() if state != "serving")
        also = "".join(f", {count} {state}" for state, count in sorted(others.items()))
        said.append(f"{name} {kind.serving} of {kind.target} serve{also}")
    waits = "".join(f"; {name} waits for room: {lacks}" for name, lacks in status.waits.items())
    return f"{'; '.join(said)}{waits}"


def _minutes(seconds: float) -> str:
    """In seconds below a minute, else minutes and seconds, or hours and minutes."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"
