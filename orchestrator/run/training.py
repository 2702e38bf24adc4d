"""The two kinds of training, each from a config to a run directory: GRPO, and the supervised baseline."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.config import RunConfig
from orchestrator.loop.loop import Run, StepTimes, checkpoint_when_asked, train
from orchestrator.loop.stop import to_its_end
from orchestrator.loop.window import Window
from orchestrator.run.autoscaling import keep_scaling
from orchestrator.run.control import beside
from orchestrator.run.end import show_imitation, show_training
from orchestrator.run.metrics import imitation_row, step_row, terms_in, terms_of
from orchestrator.run.session import Recorder, Session, started
from orchestrator.run.traces import Traces
from records.samples import PolicyVersion, ScoredGroup, StepReport


async def run_training(config: RunConfig, out: Path, console: Console, resume: bool) -> None:
    """Reinforcement learning; with *resume* on from the newest whole checkpoint in *out*."""
    async with started(config, out, "train", console, resume) as session:
        version, size = session.version, config.loop.groups_per_step
        rows = session.directory.rows()
        terms = terms_in(rows)
        newest = PolicyVersion(max((int(row["step"]) for row in rows), default=0))
        with Recorder(session) as recorder, closing(_open_traces(session, newest)) as traces:

            async def after_step(report: StepReport, groups: tuple[ScoredGroup, ...], times: StepTimes) -> None:
                load = await session.scorer.load()
                terms.update(terms_of(groups))
                recorder.record(step_row(report, groups, times, load, terms, *recorder.times()))
                traces.keep(report, groups, time.time() - times.publish_s)

            await _record_made_again(session, after_step)
            run = Run(
                rollouts=session.rollouts,
                learner=session.learner,
                publisher=session.publisher,
                prompts=session.prompts,
                window=Window(
                    groups_per_step=size,
                    max_staleness=config.loop.max_staleness,
                    total_groups=config.loop.steps * size,
                    done=version * size,
                    open=session.steering.open,
                ),
                journal=session.journal,
                steps=config.loop.steps,
                groups_per_step=size,
                max_staleness=config.loop.max_staleness,
                seed=config.seed,
                checkpoint_every=config.checkpoint.every_steps,
                evaluate_every=config.evaluation.every_steps,
                after_step=after_step,
                evaluate=session.evaluate_beside,
                served=version,
                kept=session.directory.version,
                checkpoint_asked=session.steering.checkpoint_asked,
            )
            scaling = keep_scaling(session.rollouts, run.window, size, session.console)
            try:
                async with beside(scaling), beside(checkpoint_when_asked(run)):
                    await train(run)
            except asyncio.CancelledError:
                for step in run.unseen:  # and served by nobody
                    times = replace(NO_TIMES, wait_s=step.wait_s, learn_s=step.learn_s)
                    await after_step(step.report, step.groups, times)
                await session.keep(run.unseen[-1].report.version if run.unseen else run.served)
                raise
        await session.finish(run.served)
        show_training(console, session.task, session.directory, session.held_out)


def _open_traces(session: Session, newest: PolicyVersion) -> Traces:
    """Of the steps behind *newest* none is kept yet."""
    return Traces(session.directory.path, session.config.traces, session.task, session.journal.write, newest)


AfterStep = Callable[[StepReport, tuple[ScoredGroup, ...], StepTimes], Coroutine[Any, Any, None]]
NO_TIMES = StepTimes(wait_s=0.0, learn_s=0.0, publish_s=0.0, pause_s=0.0)


async def _record_made_again(session: Session, after_step: AfterStep) -> None:
    """The rows of steps that were made when the run ended, and had none yet."""
    rows = {row["step"] for row in session.directory.rows()}
    for step, report in session.learner.made_again.items():
        session.journal.trained(step)
        if step not in rows:
            await after_step(report, session.history.groups(step), NO_TIMES)


async def run_sft(config: RunConfig, out: Path, console: Console, resume: bool) -> None:
    """Supervised: the same data, batches, learner and metrics, with the right answers to learn from."""
    # A likelihood has no temperature, and the evaluation is greedy.
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"temperature": 1.0})})
    async with started(config, out, "sft", console, resume) as session:
        learner, size, every = session.learner, config.loop.groups_per_step, config.evaluation.every_steps
        version = session.version
        with Recorder(session) as recorder:
            steering = session.steering
            while version < config.loop.steps:
                await steering.open.wait()
                prompts = tuple(session.prompts.next() for _ in range(size))
                report, stopped = await to_its_end(learner.imitate(prompts, session.history.right_answers(prompts)))
                version = report.version
                recorder.record(imitation_row(report, size, *recorder.times()))
                if stopped:
                    await session.keep(version)
                    raise asyncio.CancelledError
                due = config.checkpoint.every_steps and version % config.checkpoint.every_steps == 0
                if due or steering.checkpoint_asked.is_set():
                    steering.checkpoint_asked.clear()
                    await learner.checkpoint()
                if every and version % every == 0 and version < config.loop.steps:
                    await (await session.publisher.send(version))
                    await session.evaluate_served()
                    recorder.times()  # the next step has not taken the time of the evaluation
        if version > session.directory.version:
            await (await session.publisher.send(version))
        await session.finish(version)
        show_imitation(console, session.task, session.directory, session.held_out)
