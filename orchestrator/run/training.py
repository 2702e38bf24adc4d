"""The two kinds of training, each from a config to a run directory: GRPO, and the supervised baseline."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.config import RunConfig
from orchestrator.loop.loop import Run, StepTimes, train
from orchestrator.loop.stop import to_its_end
from orchestrator.loop.window import Window
from orchestrator.run.autoscaling import keep_scaling
from orchestrator.run.control import beside
from orchestrator.run.end import show_imitation, show_training
from orchestrator.run.metrics import imitation_row, step_row, terms_in, terms_of
from orchestrator.run.session import Recorder, Session, started
from records.samples import ScoredGroup, StepReport


async def run_training(config: RunConfig, out: Path, console: Console, resume: bool) -> None:
    """Reinforcement learning; with *resume* on from the newest whole checkpoint in *out*."""
    async with started(config, out, "train", console, resume) as session:
        version, size = session.version, config.loop.groups_per_step
        terms = terms_in(session.directory.rows())
        with Recorder(session) as recorder:

            async def after_step(report: StepReport, groups: tuple[ScoredGroup, ...], times: StepTimes) -> None:
                load = await session.scorer.load()
                terms.update(terms_of(groups))
                recorder.record(step_row(report, groups, times, load, terms, *recorder.times()))
                session.trackers.samples(report.version, groups)

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
            )
            scaling = keep_scaling(session.rollouts, run.window, size, session.console)
            try:
                async with beside(scaling):
                    await train(run)
            except asyncio.CancelledError:
                for step in run.unseen:  # and served by nobody
                    times = replace(NO_TIMES, wait_s=step.wait_s, learn_s=step.learn_s)
                    await after_step(step.report, step.groups, times)
                await session.keep(run.unseen[-1].report.version if run.unseen else run.served)
                raise
        await session.finish(run.served)
        show_training(console, session.task, session.directory, session.held_out)


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
            while version < config.loop.steps:
                prompts = tuple(session.prompts.next() for _ in range(size))
                report, stopped = await to_its_end(learner.imitate(prompts, session.history.right_answers(prompts)))
                version = report.version
                recorder.record(imitation_row(report, size, *recorder.times()))
                if stopped:
                    await session.keep(version)
                    raise asyncio.CancelledError
                if config.checkpoint.every_steps and version % config.checkpoint.every_steps == 0:
                    await learner.checkpoint()
                if every and version % every == 0 and version < config.loop.steps:
                    await (await session.publisher.send(version))
                    await session.evaluate_served()
                    recorder.times()  # the next step has not taken the time of the evaluation
        if version > session.directory.version:
            await (await session.publisher.send(version))
        await session.finish(version)
        show_imitation(console, session.task, session.directory, session.held_out)
