"""Greedy evaluation on held-out prompts, on the rollout and reward workers: before and after a run, and beside it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.loop.roles import Rollouts
from records.samples import PolicyVersion, Prompt, Score
from records.task import Task
from rollout.actor import Scorer

PROMPTS_A_WORKER = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutReply:
    """The reply to prompt *id*, *num_tokens* long, and its score."""

    id: str
    text: str
    num_tokens: int
    score: Score

    def to_json(self) -> dict[str, Any]:
        """A line of a file that `star-r1 score` reads, and what was found in the reply."""
        found = {"reward": self.score.total, **self.score.judgement.columns}
        return {"id": self.id, "reply": self.text, "num_tokens": self.num_tokens, **found}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The task's report on the *replies*, which are in the order of the prompts, with their mean `reward` by part.

    *oldest* and *newest* are the versions that any token of the answers was sampled under.
    """

    report: Mapping[str, Any]
    replies: tuple[HeldOutReply, ...]
    oldest: PolicyVersion
    newest: PolicyVersion


async def evaluate(
    task: Task,
    rollouts: Rollouts,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    progress: Callable[[int], None],
    concurrent_prompts: int,
) -> Evaluation:
    """Of the served policy on *prompts*, so many at a time; *progress* is told how many are answered."""
    slots = asyncio.Semaphore(concurrent_prompts)
    versions: set[PolicyVersion] = set()
    done = 0

    async def answer_one(prompt: Prompt) -> HeldOutReply:
        nonlocal done
        async with slots:
            sample = await rollouts.answer(prompt)
        score = await scorer.score(prompt.gold, sample)
        done += 1
        progress(done)
        versions.update(span.version for span in sample.trace.versions)
        return HeldOutReply(id=prompt.id, text=sample.text, num_tokens=len(sample.trace.token_ids), score=score)

    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(answer_one(prompt)) for prompt in prompts]
    replies = tuple(answer.result() for answer in answers)
    return Evaluation(
        report=report_on(task, replies),
        replies=replies,
        oldest=min(versions),
        newest=max(versions),
    )


def report_on(task: Task, replies: Sequence[HeldOutReply]) -> dict[str, Any]:
    """The task's report and the mean `reward` by part; a part that a reply has not is 0 there."""
    mean_tokens = sum(reply.num_tokens for reply in replies) / len(replies)
    scores = [reply.score for reply in replies]
    parts = sorted({part for score in scores for part in score.parts})
    reward = {"total": sum(score.total for score in scores) / len(scores)}
    reward |= {part: sum(score.parts.get(part, 0.0) for score in scores) / len(scores) for part in parts}
    return task.report([score.judgement for score in scores], mean_tokens) | {"reward": reward}
