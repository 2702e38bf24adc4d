"""Greedy evaluation on held-out pairs, on the rollout workers."""

import asyncio
from collections.abc import Callable, Sequence

from orchestrator.roles import Rollouts
from tvr.answer import parse
from tvr.metrics import Judgement, MetricsReport, judge, summarise
from tvr.records import Prompt

CONCURRENT_PROMPTS = 64


async def evaluate(rollouts: Rollouts, prompts: Sequence[Prompt], progress: Callable[[int], None]) -> MetricsReport:
    """The 11 metrics of the served policy on *prompts*; *progress* is told how many are answered."""
    slots = asyncio.Semaphore(CONCURRENT_PROMPTS)
    done = 0

    async def answer_one(prompt: Prompt) -> Judgement:
        nonlocal done
        async with slots:
            group = await rollouts.answer(prompt)
        done += 1
        progress(done)
        sample = group.samples[0]
        return judge(parse(sample.text), prompt.gold, view=prompt.pair.view, num_tokens=len(sample.trace.token_ids))

    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(answer_one(prompt)) for prompt in prompts]
    return summarise([answer.result() for answer in answers])
