"""The loop: sampling, scoring and learning overlap, bounded by the window. It reads like the figure in the README.

`keep_sampling` asks for groups as fast as the window admits them; `keep_learning` takes them in order, learns and
publishes. While the rollout workers take over a version, the learner makes its next step, if the groups for it are
there; slots are released only once the version is served. With `max_staleness = 0` the same code is plain, synchronous
GRPO. The first task that fails ends the run.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from orchestrator.loop.activity import Activity, Phase
from orchestrator.loop.roles import Journal, Learner, Publisher, Rollouts
from orchestrator.loop.stop import to_its_end
from orchestrator.loop.window import Ticket, Window
from records.order import PromptOrder
from records.samples import PolicyVersion, ScoredGroup, StepReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Where one step went, in seconds. Sampling and scoring go on all the while.

    The learning side waits for groups, then learns. *publish_s* is from there until the version is served, when the
    learner can be well into its next step. *transfer_s* of it are the way of the weights, from when the learner began
    to send them; for *pause_s* of these a worker could not sample.
    """

    wait_s: float
    learn_s: float
    publish_s: float
    transfer_s: float
    pause_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """A step whose version is not served yet. Learning ended at *ended*, by `time.monotonic`."""

    report: StepReport
    groups: tuple[ScoredGroup, ...]
    wait_s: float
    learn_s: float
    ended: float


@dataclass(kw_only=True)
class Run:
    """Everything that the loop touches.

    *after_step* sees each step once its version is served; every *checkpoint_every* steps the learner's state is kept
    (0: never), and every *evaluate_every* steps *evaluate* asks the served policy: it runs beside the steps that
    follow, one at a time, as *evaluating*. A run that goes on begins with its *served* version. What is
    learned, and *after_step* has not seen, is *unseen*: it is lost to nobody if the run is stopped.
    """

    rollouts: Rollouts
    learner: Learner
    publisher: Publisher
    prompts: PromptOrder
    window: Window
    journal: Journal
    steps: int
    groups_per_step: int
    max_staleness: int
    seed: int
    checkpoint_every: int
    evaluate_every: int
    after_step: Callable[[StepReport, tuple[ScoredGroup, ...], StepTimes], Coroutine[Any, Any, None]]
    evaluate: Callable[[], Coroutine[Any, Any, None]]
    served: PolicyVersion = field(default=PolicyVersion(0))
    evaluating: asyncio.Task[None] | None = None
    unseen: list[Learned] = field(default_factory=list)
    activity: Activity = field(default_factory=Activity)


class StaleGroup(RuntimeError):
    """A group older than the window allows was about to be trained on: a bug, never a statistic."""


async def train(run: Run) -> None:
    """Run to the end, evaluations included. Raises an ExceptionGroup with the first failure of any part.

    Cancelled, it ends as soon as the learner's step has, if one is being made.
    """
    async with asyncio.TaskGroup() as sides:
        sides.create_task(keep_sampling(run), name="sampling")
        sides.create_task(keep_learning(run, sides), name="learning")


async def keep_sampling(run: Run) -> None:
    """One task for each admitted group, until the window has admitted all that the run needs."""
    async with asyncio.TaskGroup() as groups:
        while (ticket := await run.window.admit()) is not None:
            groups.create_task(sample(run, ticket), name=f"group {ticket}")


async def sample(run: Run, ticket: Ticket) -> None:
    """The next prompt's group, each answer scored as it ended."""
    prompt = run.prompts.next()
    run.journal.admitted(ticket, prompt.id)
    with run.activity.sampling():
        group = await run.rollouts.sample(prompt, seed=sampling_seed(run.seed, ticket))
    await run.window.deliver(ticket, group)


async def keep_learning(run: Run, sides: asyncio.TaskGroup) -> None:
    """Take, learn, send: once a step. Versions are served one after another."""
    version, serving = run.served, None
    while version < run.steps:
        step = await learn(run, version)
        version = step.report.version
        if serving is not None:
            await serving
        began = time.monotonic()
        takeover = await run.publisher.send(version)
        run.journal.write("sent", version=version)
        serving = sides.create_task(serve(run, sides, step, takeover, began), name=f"takeover of version {version}")
        if run.checkpoint_every and version % run.checkpoint_every == 0:
            run.activity.enter(Phase.CHECKPOINTING)
            await serving  # a step that is in a checkpoint is in the records of the run as well
            run.journal.write("checkpointing", version=version)
            await run.learner.checkpoint()
            run.journal.write("checkpoint begun", version=version)


async def learn(run: Run, version: PolicyVersion) -> Learned:
    """The step that follows *version*."""
    began = time.monotonic()
    run.activity.enter(Phase.WAITING)
    groups = await run.window.take(run.groups_per_step)
    check_staleness(groups, version, run.max_staleness)
    taken = time.monotonic()
    run.activity.enter(Phase.LEARNING)
    report, stopped = await to_its_end(make(run, PolicyVersion(version + 1), groups))
    ended = time.monotonic()
    run.activity.enter(Phase.PUBLISHING)
    learned = Learned(report=report, groups=groups, wait_s=taken - began, learn_s=ended - taken, ended=ended)
    run.unseen.append(learned)
    if stopped:
        raise asyncio.CancelledError
    return learned


async def make(run: Run, step: PolicyVersion, groups: tuple[ScoredGroup, ...]) -> StepReport:
    """The step, and its groups on the disk: whoever makes it again need not sample again."""
    report, _ = await asyncio.gather(run.learner.step(groups), run.journal.keep(step, groups))
    run.journal.trained(step)
    return report


async def serve(
    run: Run, sides: asyncio.TaskGroup, step: Learned, takeover: Coroutine[Any, Any, float], began: float
) -> None:
    """The rollout workers take over the version that the learner *began* to send, and its groups' slots are free."""
    pause_s = await takeover
    run.served = step.report.version
    run.journal.write("served", version=run.served)
    now = time.monotonic()
    await run.window.release(len(step.groups))  # only now: earlier, and a group could be one version too old
    times = StepTimes(
        wait_s=step.wait_s, learn_s=step.learn_s, publish_s=now - step.ended, transfer_s=now - began, pause_s=pause_s
    )
    await run.after_step(step.report, step.groups, times)
    assert run.unseen.pop(0) is step, "versions are served one after another"
    if run.evaluate_every and run.served % run.evaluate_every == 0 and run.served < run.steps:
        begin_evaluation(run, sides)


def begin_evaluation(run: Run, sides: asyncio.TaskGroup) -> None:
    """Of the served version, unless the last one goes on: they would slow each other down, and the steps."""
    name = f"evaluation of version {run.served}"
    if run.evaluating is not None and not run.evaluating.done():
        logger.warning(
            "no %s: the %s goes on; a larger evaluation.every_steps or evaluation.concurrent_prompts leaves none out",
            name,
            run.evaluating.get_name(),
        )
        return
    run.evaluating = sides.create_task(run.evaluate(), name=name)


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
