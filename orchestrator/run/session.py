"""What the two kinds of training have in common: data, workers, run directory, evaluation before and after."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from learner.encode import PictureEncoder
from orchestrator.cluster.learner import RayLearner
from orchestrator.cluster.metrics_page import RayMetrics
from orchestrator.cluster.publish import make_publisher
from orchestrator.cluster.rollouts import RayRollouts
from orchestrator.cluster.scoring import RayScorers
from orchestrator.cluster.start import connected, start_roles, stop_watching, watched
from orchestrator.config import ConfigError, RunConfig
from orchestrator.display import counting, live_note, say, step_line
from orchestrator.loop.roles import Publisher
from orchestrator.loop.stop import cancelled_by_sigterm
from orchestrator.run.checkpoint_room import check_checkpoint_room
from orchestrator.run.control import beside, keep_control
from orchestrator.run.directory import Kind, RunDirectory, claimed_run_directory
from orchestrator.run.environment import check_device
from orchestrator.run.evaluate import PROMPTS_A_WORKER, Evaluation, evaluate
from orchestrator.run.history import RunHistory
from orchestrator.run.journal import Journal
from orchestrator.run.metrics import MetricsFile
from orchestrator.run.model_folder import open_model_folder
from orchestrator.run.prompt_room import check_room
from orchestrator.run.teller import Teller
from orchestrator.run.trackers.trackers import Trackers, check_trackers, tracked
from orchestrator.run.workforce import Workforce
from records.order import PromptOrder
from records.samples import PolicyVersion, Prompt
from records.task import SPLITS, DataSet, Task, load_task
from reward_service.rules import load_rule

logger = logging.getLogger(__name__)

STOP_S = 10.0


@dataclass(kw_only=True)
class Session:
    """A run whose workers are ready: the policy is that of *version*, and *prompts* stand behind it."""

    config: RunConfig
    task: Task
    console: Console
    directory: RunDirectory
    journal: Journal
    history: RunHistory
    trackers: Trackers
    version: PolicyVersion
    rollouts: RayRollouts
    scorer: RayScorers
    learner: RayLearner
    publisher: Publisher
    prompts: PromptOrder
    held_out: Sequence[Prompt]

    async def evaluate(self, when: str) -> None:
        """Ask the held-out prompts, if there are any, and keep what was found under the name *when*."""
        if not self.held_out:
            return
        with counting(self.console, f"evaluation {when}") as counter:
            found = await self._ask(lambda done: counter(done, len(self.held_out)), self._all_at_once)
        self._keep_evaluation(when, found)

    async def evaluate_beside(self) -> None:
        """`evaluate_served` while training goes on, a few prompts at a time."""
        await self.evaluate_served(self.config.evaluation.concurrent_prompts)

    @property
    def _all_at_once(self) -> int:
        """Prompts that fill all workers."""
        return PROMPTS_A_WORKER * len(self.rollouts.workers)

    async def evaluate_served(self, concurrent_prompts: int | None = None) -> None:
        """The same between the first version and the last, said in a line and named by the versions that answered."""
        if not self.held_out:
            return
        at_once = concurrent_prompts or self._all_at_once
        found = await self._ask(lambda done: None, at_once)
        asked = f"version {found.oldest}" + (f" to {found.newest}" if found.newest > found.oldest else "")
        self._keep_evaluation(asked, found)
        name, metrics = self.task.headline, found.report["metrics"]
        said = f"{name} {metrics[name]:.3f}" if name else f"reward {found.report['reward']['total']:+.3f}"
        self.console.print(f"evaluation of {asked}: {said}", highlight=False)

    def _keep_evaluation(self, name: str, found: Evaluation) -> None:
        self.directory.add_evaluation(name, found)
        self.trackers.evaluation(name, found.oldest, found.report)

    async def _ask(self, progress: Callable[[int], None], at_once: int) -> Evaluation:
        return await evaluate(self.task, self.rollouts, self.scorer, self.held_out, progress, at_once)

    async def keep(self, version: PolicyVersion) -> None:
        """What a run that is stopped at *version* has learned since it started: a checkpoint, to go on from."""
        if self.config.checkpoint.every_steps and version > self.directory.version:
            self.console.print(f"stopping after step {version}: writing a checkpoint", highlight=False)
            await self.learner.checkpoint()
            await self.learner.finish_checkpoint()

    async def finish(self, version: PolicyVersion) -> None:
        """Save the policy and all that is needed to give it more steps, and evaluate it."""
        every = self.config.checkpoint.every_steps
        if every and version % every and version > self.directory.version:
            await self.learner.checkpoint()
        await self.learner.finish_checkpoint()
        await self.learner.save(str(self.directory.model))
        await self.evaluate("after")


@asynccontextmanager
async def started(config: RunConfig, out: Path, kind: Kind, console: Console, resume: bool) -> AsyncIterator[Session]:
    """Make the data set if needed, start the workers, and evaluate the policy that the run begins with.

    What a user can mend is said before the workers start, as ConfigError.
    """
    with claimed_run_directory(config, out, kind, resume) as directory:
        say(console, f"run directory: {directory.path}")
        for line in directory.changed:
            say(console, line)
        check_device(config.device)
        check_trackers(config.trackers)
        encoder = open_model_folder(config.model)
        task = load_task(config.task)
        _check_rule(config, task)
        data, training, held_out = _prompts(config, task, console)
        directory.check_data(data)
        _check_golds(config, task, data, console)
        _check_longest(config, encoder, data, console)
        journal = Journal(directory.path)
        history = RunHistory(config, kind, task, directory, journal, PromptOrder(training, config.seed))
        tracking = tracked(config, directory, task, console)
        with tracking as trackers, connected(config), cancelled_by_sigterm():  # Ray's own handler would abort
            console.print("starting the workers")
            began = time.monotonic()
            tell = Teller(journal, console)
            rollouts, scorer, learner = await start_roles(config, directory.path, history, tell)
            console.print(f"all workers are ready after {time.monotonic() - began:.0f} s", highlight=False)
            try:
                await _say_checkpoints(config, directory, learner, console)
                directory.begin(config, kind, data, learner.version)
                journal.began(learner.version)
                trackers.catch_up(directory)
                session = Session(
                    config=config,
                    task=task,
                    console=console,
                    directory=directory,
                    journal=journal,
                    history=history,
                    trackers=trackers,
                    version=learner.version,
                    rollouts=rollouts,
                    scorer=scorer,
                    learner=learner,
                    publisher=make_publisher(learner, rollouts, config.rollout),
                    prompts=_prompts_left(config, training, learner.version),
                    held_out=held_out,
                )
                control = keep_control(directory.path, Workforce(rollouts, scorer))
                async with watched(rollouts, scorer, learner), beside(control):
                    if "before" not in directory.evaluations():
                        await session.evaluate("before")
                    if session.version > 0:
                        await (await session.publisher.send(session.version))
                    yield session
            except BaseException:  # whatever ended the run, nothing of it stays in shared memory
                await _stop_after_failure(rollouts)
                raise
            finally:
                await stop_watching(rollouts, scorer, learner)
                journal.close()
            await rollouts.stop()


async def _say_checkpoints(config: RunConfig, directory: RunDirectory, learner: RayLearner, console: Console) -> None:
    """From which one the run goes on, and what those to come take. Raises ConfigError if there is no room for them."""
    for torn in directory.torn:
        say(console, f"passed over a checkpoint: {torn.reason}")
    if directory.checkpoint is not None:
        say(console, f"going on from {directory.checkpoint.path}")
    if steps := list(learner.made_again):
        say(
            console, f"made steps {steps[0]} to {steps[-1]} again from the groups that were kept: none is sampled twice"
        )
    if config.checkpoint.every_steps:
        say(console, check_checkpoint_room(config, directory.path, await learner.snapshot_bytes()))


def _prompts_left(config: RunConfig, training: Sequence[Prompt], version: PolicyVersion) -> PromptOrder:
    """Those behind the steps that are done."""
    prompts = PromptOrder(training, config.seed)
    prompts.seek(version * config.loop.groups_per_step)
    return prompts


async def _stop_after_failure(rollouts: RayRollouts) -> None:
    """A failure here would hide the one that ended the run."""
    try:
        await asyncio.wait_for(rollouts.stop(), STOP_S)
    except Exception as error:
        logger.warning("a rollout worker did not stop (%r); the next one to start removes its shared memory", error)


def _check_rule(config: RunConfig, task: Task) -> None:
    try:
        load_rule(task, config.reward_service.rule, config.reward_service.options)
    except ValueError as error:
        raise ConfigError(f"reward_service.rule: {error}") from error


def _check_golds(config: RunConfig, task: Task, data: DataSet, console: Console) -> None:
    """Raises ConfigError for a truth that the task's rule cannot read: it would fail each reply."""
    rewards = config.reward_service
    if rewards.rule not in task.rules:
        return  # one of the user's own, which may cost what a judge costs
    rule = load_rule(task, rewards.rule, rewards.options)
    with counting(console, "reading answers", check=True) as counter:
        for split in SPLITS:
            try:
                golds = data.golds(split)
                for number, (name, gold) in enumerate(golds, 1):
                    counter(number, len(golds))
                    try:
                        rule("", gold)
                    except ValueError as error:
                        raise ValueError(f"{name}, rule {rewards.rule}: its truth {error}") from error
            except ValueError as error:
                raise ConfigError(f"data: {error}") from error


def _check_longest(config: RunConfig, encoder: PictureEncoder, data: DataSet, console: Console) -> None:
    """Raises ConfigError for a prompt that has no room, or cannot be asked."""
    with counting(console, "measuring prompts", check=True) as counter:
        for split in SPLITS:
            try:
                prompts = data.longest(split)
                for number, prompt in enumerate(prompts, 1):
                    counter(number, len(prompts))
                    check_room(config.rollout, prompt, len(encoder.tokenise(prompt)))
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"data: {error}") from error


def _prompts(config: RunConfig, task: Task, console: Console) -> tuple[DataSet, Sequence[Prompt], Sequence[Prompt]]:
    """The data set, made if it is missing, its training prompts and those that are held out."""
    train, test = SPLITS
    try:
        with counting(console, "making the data set") as counter:
            task.make(config.data, counter)
        data = task.open(config.data)
        return data, data.prompts(train), data.prompts(test)[: config.evaluation.max_samples]
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error


class Recorder:
    """Writes each step's row where it is read: file, metrics page, screen. Times count from entering."""

    def __init__(self, session: Session) -> None:
        self._file = MetricsFile(session.directory.metrics)
        self._page = RayMetrics()
        self._trackers = session.trackers
        self._steps = session.config.loop.steps
        self._done = session.version
        self._console = session.console
        self._shares = session.task.shares
        self._counting = counting(session.console, "training")

    def __enter__(self) -> "Recorder":
        self._counter = self._counting.__enter__()
        if self._console.is_terminal:
            self._counter(self._done, self._steps)
        self._began = self._last = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._counting.__exit__(None, None, None)
        self._file.close()

    def times(self) -> tuple[float, float]:
        """Seconds since the last step ended, and since the first began; the next call counts from here."""
        now = time.monotonic()
        step_s, self._last = now - self._last, now
        return step_s, now - self._began

    def record(self, row: dict[str, float]) -> None:
        self._file.write(row)
        self._page.publish(row)
        self._trackers.row(row)
        if self._console.is_terminal:
            self._counter(int(row["step"]), self._steps, live_note(row))
        else:
            made = max(1, row["step"] - self._done)  # an earlier driver's step has its row only now
            left_s = row["elapsed_s"] / made * (self._steps - row["step"])
            self._console.print(step_line(row, self._steps, left_s, self._shares), highlight=False, soft_wrap=True)
