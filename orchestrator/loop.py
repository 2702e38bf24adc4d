"""The loop: sampling, scoring and learning overlap, bounded by the window. It reads like the figure in the README.

`keep_sampling` asks for groups as fast as the window admits them; `keep_learning` takes them in order, learns,
publishes, and only then releases their slots. With `max_staleness = 0` the same code is plain, synchronous GRPO. The
first task that fails ends the run.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from orchestrator.publish import publish
from orchestrator.roles import Learner, Rollouts, Scorer
from orchestrator.window import Ticket, Window
from tvr.dataset import PromptOrder
from tvr.records import PolicyVersion, ScoredGroup, StepReport


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Where one step of the learning side went, in seconds. Sampling and scoring go on all the while."""

    wait_s: float
    learn_s: float
    publish_s: float


@dataclass(kw_only=True)
class Run:
    """Everything that the loop touches.

    *after_step* sees each step once its version is served; every *checkpoint_every* steps the learner's state is kept
    (0: never), and every *evaluate_every* steps *evaluate* is called with the version just served: it runs beside the
    steps that follow. A run that goes on begins with its *served* version.
    """

    rollouts: Rollouts
    scorer: Scorer
    learner: Learner
    prompts: PromptOrder
    window: Window
    steps: int
    groups_per_step: int
    max_staleness: int
    seed: int
    checkpoint_every: int
    evaluate_every: int
    after_step: Callable[[StepReport, tuple[ScoredGroup, ...], StepTimes], None]
    evaluate: Callable[[PolicyVersion], Coroutine[Any, Any, None]]
    served: PolicyVersion = field(default=PolicyVersion(0))


class StaleGroup(RuntimeError):
    """A group older than the window allows was about to be trained on: a bug, never a statistic."""


async def train(run: Run) -> None:
    """Run to the end, evaluations included. Raises an ExceptionGroup with the first failure of any part."""
    async with asyncio.TaskGroup() as sides:
        sides.create_task(keep_sampling(run), name="sampling")
        sides.create_task(keep_learning(run, sides), name="learning")


async def keep_sampling(run: Run) -> None:
    """One task for each admitted group, until the window has admitted all that the run needs."""
    async with asyncio.TaskGroup() as groups:
        while (ticket := await run.window.admit()) is not None:
            groups.create_task(sample_and_score(run, ticket), name=f"group {ticket}")


async def sample_and_score(run: Run, ticket: Ticket) -> None:
    """Sample the next prompt's group, score it, hand it in."""
    group = await run.rollouts.sample(run.prompts.next(), seed=sampling_seed(run.seed, ticket))
    await run.window.deliver(ticket, await run.scorer.score(group))


async def keep_learning(run: Run, sides: asyncio.TaskGroup) -> None:
    """Take, learn, publish, release: once a step. The version after the last step is not evaluated here."""
    while run.served < run.steps:
        began = time.monotonic()
        groups = await run.window.take(run.groups_per_step)
        check_staleness(groups, run.served, run.max_staleness)
        taken = time.monotonic()
        report = await run.learner.step(groups)
        learned = time.monotonic()
        await publish(report.version, run.learner, run.rollouts)
        run.served = report.version
        published = time.monotonic()
        await run.window.release(len(groups))  # only now: earlier, and a group could be one version too old
        times = StepTimes(wait_s=taken - began, learn_s=learned - taken, publish_s=published - learned)
        run.after_step(report, groups, times)
        if run.checkpoint_every and report.version % run.checkpoint_every == 0:
            await run.learner.checkpoint()
        if run.evaluate_every and report.version % run.evaluate_every == 0 and report.version < run.steps:
            sides.create_task(run.evaluate(report.version), name=f"evaluation of version {report.version}")


def staleness(group: ScoredGroup, version: PolicyVersion) -> int:
    """How many versions older than *version* the group's oldest token is."""
    return version - group.group.oldest_version


def check_staleness(groups: tuple[ScoredGroup, ...], version: PolicyVersion, max_staleness: int) -> None:
    """Raise StaleGroup unless every group may be trained on by the policy of *version*."""
    for group in groups:
        if not 0 <= staleness(group, version) <= max_staleness:
            raise StaleGroup(
                f"group {group.group.prompt.id} was sampled under version {group.group.oldest_version} and would be "
                f"trained on at version {version}; max_staleness is {max_staleness}"
            )


def sampling_seed(run_seed: int, ticket: int) -> int:
    """A seed of its own for each group, the same in every run with the same run seed."""
    return (run_seed * 1_000_003 + ticket) % 2**31
