"""Throughput while rollout workers come, leave and die: a picture, and one JSON line last.

    python -m tests.bench.elastic --out output/elastic

One run of the tiny policy through 1 -> 2 -> 1 rollout workers, then through a kill of each kind, on pinned cores.
`join_s`: from the asking until the second worker serves, and `start_s`: of it, the start of its engine.
`worst_step_ratio`: the longest step while one leaves, over the median of the run. `recover_s`: by kind, from the kill
until another serves. `goodput`: the share of the time in which steps were made that lasted, with a fault every
`--every` seconds.
`supervision_cpu_share`: what the driver's supervision takes of a core, with everything else left out.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from orchestrator.config import load_run_config
from orchestrator.run.control import Wanted, ask
from orchestrator.run.journal import Event
from orchestrator.supervision.fleet import Fleet, Limits
from orchestrator.supervision.supervisor import Pulse, Supervisor
from tasks.tvr.data.rendered import ensure
from tests.faults.faulty_run import Fault, FaultyRun
from tests.faults.settings import settings
from tests.orchestrator.small_runs import SMALL, TINY

STEADY_STEPS = 12
KILLS = (Fault("kill", "rollout", "sample"), Fault("kill", "reward", "score"), Fault("kill", "learner", "step"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("output/elastic"))
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults, for goodput")
    parser.add_argument("--faults", type=int, default=6, help="faults for goodput")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    data = ensure(load_run_config(TINY, [*SMALL, "data.path=data/soak"]).data)
    given = settings(data, 100_000, "loop.max_staleness=1", "loop.groups_per_step=8", "data.train=12")
    run = FaultyRun(options.out / "run", given)
    try:
        run.start()
        result = measure(run, options.every, options.faults)
        events = list(run.events())
    finally:
        run.end()
    result["supervision_cpu_share"] = asyncio.run(supervision_cpu_share())
    draw(events, result["marks"], options.out / "elastic.png")
    print(json.dumps({key: value for key, value in result.items() if key != "marks"}))


def measure(run: FaultyRun, every_s: float, faults: int) -> dict:
    marks: list[tuple[float, str]] = []
    steady(run)
    asked, lines = time.time(), len(run.events())
    marks.append((asked, "2 workers asked for"))
    ask(run.out, Wanted(rollouts=2))
    started = until(run, lines, "runs", "rollout")
    joined = until(run, lines, "serving", "rollout")
    marks.append((joined.facts["at"], "the second serves"))
    steady(run)
    left, lines = time.time(), len(run.events())
    marks.append((left, "1 asked for"))
    ask(run.out, Wanted(rollouts=1))
    gone = until(run, lines, "gone", "rollout")
    marks.append((gone.facts["at"], "it is gone"))
    steady(run)
    recover_s = {}
    for fault in KILLS:
        witness = run.strike(fault, after=0)
        marks.append((witness.at, f"{fault.kind} killed"))
        run.await_recovery(witness)
        recover_s[fault.kind] = round(witness.recovered_s, 1)
        steady(run)
    begun, version = time.time(), run.served()
    for number in range(faults):
        witness = run.strike(KILLS[number % len(KILLS)], after=0)
        marks.append((witness.at, f"{witness.fault.kind} killed"))
        run.await_recovery(witness)
        time.sleep(max(0.0, every_s - (time.time() - witness.at)))
    lost_s = time.time() - begun
    steps = step_times(run.events())
    median = statistics.median(seconds for _, seconds in steps)
    leaving = [seconds for at, seconds in steps if left <= at <= gone.facts["at"] + median]
    return {
        "join_s": round(joined.facts["at"] - asked, 1),
        "start_s": round(joined.facts["at"] - started.facts["at"], 1),
        "leave_s": round(gone.facts["at"] - left, 1),
        "worst_step_ratio": round(max(leaving, default=0.0) / median, 2),
        "recover_s": recover_s,
        "goodput": round((run.served() - version) * median / lost_s, 2),
        "median_step_s": round(median, 2),
        "faults": faults,
        "marks": marks,
    }


def steady(run: FaultyRun) -> None:
    """So many steps pass."""
    wanted = run.served() + STEADY_STEPS
    while run.served() < wanted:
        time.sleep(0.1)
        assert not run.is_over(), run.log.read_text()[-3000:]


def until(run: FaultyRun, lines: int, name: str, kind: str) -> Event:
    """The first such event behind the first *lines*."""
    while True:
        for event in run.events()[lines:]:
            if event.name == name and event.facts["worker"].startswith(kind):
                return event
        time.sleep(0.05)
        assert not run.is_over(), run.log.read_text()[-3000:]


def step_times(events: Sequence[Event]) -> list[tuple[float, float]]:
    """When each step was served, and how long after the last."""
    at = [event.facts["at"] for event in events if event.name == "served"]
    return [(now, now - before) for before, now in itertools.pairwise(at)]


class IdleHand:
    """A worker that is always well: what is left is the supervision."""

    async def start(self, placed) -> int:
        placed()
        return 0

    async def look(self) -> Pulse:
        return Pulse(int(time.monotonic() * 10), True)

    async def last_words(self) -> str:
        return ""


async def supervision_cpu_share(workers: int = 64, seconds: float = 10.0) -> float:
    """Of a core, for so many workers in all, without what Ray takes for the calls."""
    supervisor = Supervisor(Fleet("rollout", workers, Limits()), lambda name: IdleHand(), lambda event, **facts: None)
    supervisor.begin()
    await supervisor.until(lambda: len(supervisor.hands) == workers)
    before = psutil.Process().cpu_times()
    await asyncio.sleep(seconds)
    after = psutil.Process().cpu_times()
    await supervisor.end()
    return round((after.user + after.system - before.user - before.system) / seconds, 4)


def draw(events: Sequence[Event], marks: Sequence[tuple[float, str]], path: Path) -> None:
    """Steps a minute over time, with what happened."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = step_times(events)
    began = steps[0][0]
    figure, axes = pyplot.subplots(figsize=(12, 4.5), layout="constrained")
    axes.step([at - began for at, _ in steps], [60 / seconds for _, seconds in steps], where="pre", linewidth=1)
    axes.set_xlabel("seconds")
    axes.set_ylabel("steps a minute")
    axes.set_ylim(bottom=0)
    for at, what in marks:
        axes.axvline(at - began, color="tab:red" if "killed" in what else "tab:green", linewidth=0.8)
        axes.text(at - began, axes.get_ylim()[1], f" {what}", rotation=90, va="top", ha="right", fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
