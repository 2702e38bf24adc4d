"""Greedy evaluation on held-out pairs, on the rollout workers: before and after a run, and beside it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.roles import Rollouts
from tvr.answer import parse
from tvr.metrics import Judgement, MetricsReport, judge, summarise
from tvr.records import PolicyVersion, Prompt

CONCURRENT_PROMPTS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The 11 metrics, and the *oldest* and *newest* version that any token of the answers was sampled under."""

    report: MetricsReport
    oldest: PolicyVersion
    newest: PolicyVersion


async def evaluate(
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    progress: Callable[[int], None],
    concurrent_prompts: int = CONCURRENT_PROMPTS,
) -> Evaluation:
    """Of the served policy on *prompts*, so many at a time; *progress* is told how many are answered."""
    slots = asyncio.Semaphore(concurrent_prompts)
    versions: set[PolicyVersion] = set()
    done = 0

    async def answer_one(prompt: Prompt) -> Judgement:
        nonlocal done
        async with slots:
            sample = await rollouts.answer(prompt)
        done += 1
        progress(done)
        versions.update(span.version for span in sample.trace.versions)
        return judge(parse(sample.text), prompt.gold, view=prompt.pair.view, num_tokens=len(sample.trace.token_ids))

    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(answer_one(prompt)) for prompt in prompts]
    report = summarise([answer.result() for answer in answers])
    return Evaluation(report=report, oldest=min(versions), newest=max(versions))
