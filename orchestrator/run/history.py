"""What a run has kept of its steps, so that a learner whose ranks were lost makes them again as they were."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.cluster.pictures import store
from orchestrator.cluster.ranks import LearnerRanks
from orchestrator.config import ConfigError, RunConfig
from orchestrator.run.directory import Kind, RunDirectory
from orchestrator.run.journal import Journal
from records.order import PromptOrder
from records.samples import PolicyVersion, Prompt, ScoredGroup, StepReport
from records.task import Task


class RunHistory:
    """`cluster.learner.History` of the run in *directory*, whose *prompts* have the order of the run."""

    def __init__(
        self,
        config: RunConfig,
        kind: Kind,
        task: Task,
        directory: RunDirectory,
        journal: Journal,
        prompts: PromptOrder,
    ) -> None:
        self._config = config
        self._kind = kind
        self._task = task
        self._directory = directory
        self._journal = journal
        self._prompts = prompts

    def checkpoints(self) -> RunDirectory:
        """Those that the driver found, and once it has begun, those that are on the disk now."""
        if self._journal.has_begun:
            self._directory.look_again()
        return self._directory

    def kept(self, after: PolicyVersion, until: PolicyVersion | None) -> list[PolicyVersion]:
        """Of a supervised run all that were made since it was started: what they were made of is in the data."""
        if self._kind == "sft":
            return [PolicyVersion(step) for step in range(after + 1, (until or after) + 1)]
        return [step for step in self._journal.kept(after) if until is None or step <= until]

    async def make_again(self, ranks: LearnerRanks, step: PolicyVersion) -> StepReport:
        if self._kind == "sft":
            size = self._config.loop.groups_per_step
            prompts = tuple(self._prompts.at(cursor) for cursor in range((step - 1) * size, step * size))
            return await ranks.imitate(prompts, self.right_answers(prompts))
        groups = await asyncio.to_thread(self.groups, step)
        stored = tuple(replace(it, group=replace(it.group, prompt=store(it.group.prompt))) for it in groups)
        return await ranks.step(stored)

    def groups(self, step: PolicyVersion) -> tuple[ScoredGroup, ...]:
        """Those that *step* learned from."""
        return self._journal.groups(step, self._prompts.at)

    def right_answers(self, prompts: Sequence[Prompt]) -> tuple[str, ...]:
        """What a supervised step imitates. Raises ConfigError."""
        try:
            return tuple(self._task.right_answer(prompt.gold, self._config.learner.imitation) for prompt in prompts)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def forget(self) -> None:
        """What the oldest checkpoint that is left has."""
        if (oldest := self._directory.oldest_checkpoint()) is not None:
            self._journal.forget(oldest)
