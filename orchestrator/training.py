"""One training run, from a config to a run directory.

The directory holds `config.toml` (resolved), `metrics.jsonl` (a row a step), `evaluation.json` (before and after) and
`model/`, a plain Hugging Face folder.
"""

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path

import tomli_w
from rich.console import Console

from orchestrator.cluster import connected, start_roles
from orchestrator.config import ConfigError, RunConfig
from orchestrator.display import counting, live_note, metrics_table, reward_table, step_line
from orchestrator.evaluate import evaluate
from orchestrator.loop import Run, StepTimes, train
from orchestrator.metrics import MetricsFile, read_rows, step_row
from orchestrator.ray_roles import RayMetrics
from orchestrator.window import Window
from tvr.dataset import PromptOrder, load
from tvr.metrics import MetricsReport
from tvr.records import ScoredGroup, StepReport
from tvr.rendered import ensure

logger = logging.getLogger(__name__)


async def run_training(config: RunConfig, out: Path, console: Console) -> None:
    """Render if needed, start the workers, evaluate, train, evaluate, save."""
    if (out / "config.toml").exists():
        raise ConfigError(f"--out {out}: holds a run already; remove it or name another folder")
    try:
        with counting(console, "rendering pairs") as counter:
            data = ensure(config.data, counter)
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    prompts = PromptOrder(load(data, "train"), config.seed)
    held_out = load(data, "test")[: config.evaluation.max_samples]
    with connected(config):
        console.print("starting the workers")
        began = time.monotonic()
        rollouts, scorer, learner = await start_roles(config)
        console.print(f"all workers are ready after {time.monotonic() - began:.0f} s", highlight=False)

        async def judged(when: str) -> dict[str, MetricsReport]:
            if not held_out:
                return {}
            with counting(console, f"evaluation {when}") as counter:
                return {when: await evaluate(rollouts, held_out, lambda done: counter(done, len(held_out)))}

        reports = await judged("before")
        begin_run_directory(config, out)
        recorder = Recorder(out, config.loop.steps, console)
        run = Run(
            rollouts=rollouts,
            scorer=scorer,
            learner=learner,
            prompts=prompts,
            window=Window(
                groups_per_step=config.loop.groups_per_step,
                max_staleness=config.loop.max_staleness,
                total_groups=config.loop.steps * config.loop.groups_per_step,
            ),
            steps=config.loop.steps,
            groups_per_step=config.loop.groups_per_step,
            max_staleness=config.loop.max_staleness,
            seed=config.seed,
            after_step=recorder.record,
        )
        with recorder:
            await train(run)
        await learner.save(str((out / "model").resolve()))
        reports |= await judged("after")
        await rollouts.stop()
    if reports:
        (out / "evaluation.json").write_text(json.dumps({k: asdict(v) for k, v in reports.items()}, indent=2) + "\n")
        console.print(metrics_table(reports))
    console.print(reward_table(read_rows(out / "metrics.jsonl")))
    console.print(f"run directory: {out}", highlight=False, soft_wrap=True)


def begin_run_directory(config: RunConfig, out: Path) -> None:
    """Make *out* and write the resolved config."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.toml").write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


class Recorder:
    """Writes each step where it is read: file, metrics page, screen."""

    def __init__(self, out: Path, steps: int, console: Console) -> None:
        self._file = MetricsFile(out / "metrics.jsonl")
        self._page = RayMetrics()
        self._steps = steps
        self._console = console
        self._counting = counting(console, "training")

    def __enter__(self) -> "Recorder":
        self._counter = self._counting.__enter__()
        if self._console.is_terminal:
            self._counter(0, self._steps)
        self._began = self._last = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._counting.__exit__(None, None, None)
        self._file.close()

    def record(self, report: StepReport, groups: tuple[ScoredGroup, ...], times: StepTimes) -> None:
        now = time.monotonic()
        row = step_row(report, groups, times, step_s=now - self._last, elapsed_s=now - self._began)
        self._last = now
        self._file.write(row)
        self._page.publish(row)
        if self._console.is_terminal:
            self._counter(int(row["step"]), self._steps, live_note(row))
        else:
            self._console.print(step_line(row, self._steps), highlight=False, soft_wrap=True)
