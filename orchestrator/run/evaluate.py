"""Greedy evaluation on held-out pairs, on the rollout workers: before and after a run, and beside it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.loop.roles import Rollouts
from tvr.language.answer import parse
from tvr.language.behaviour import count_triplets, is_careful
from tvr.language.metrics import Judgement, MetricsReport, judge, summarise
from tvr.records import PolicyVersion, Prompt

PROMPTS_A_WORKER = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutReply:
    """The reply to prompt *id*, *num_tokens* long, and what is found in it (`tvr/language/behaviour.py`)."""

    id: str
    text: str
    num_tokens: int
    judgement: Judgement
    careful: bool
    num_triplets: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The 11 metrics, and the *oldest* and *newest* version that any token of the answers was sampled under.

    Over the *replies*, which are in the order of the prompts: *careful* is the share that is well-formed and goes
    through the objects one by one, *triplets* the mean number of predicted triplets.
    """

    report: MetricsReport
    careful: float
    triplets: float
    replies: tuple[HeldOutReply, ...]
    oldest: PolicyVersion
    newest: PolicyVersion


async def evaluate(
    rollouts: Rollouts,
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
        done += 1
        progress(done)
        versions.update(span.version for span in sample.trace.versions)
        return read_reply(prompt, sample.text, len(sample.trace.token_ids))

    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(answer_one(prompt)) for prompt in prompts]
    replies = tuple(answer.result() for answer in answers)
    return Evaluation(
        report=summarise([reply.judgement for reply in replies]),
        careful=sum(reply.careful for reply in replies) / len(replies),
        triplets=sum(reply.num_triplets for reply in replies) / len(replies),
        replies=replies,
        oldest=min(versions),
        newest=max(versions),
    )


def read_reply(prompt: Prompt, text: str, num_tokens: int) -> HeldOutReply:
    """Judge the reply *text* to *prompt*."""
    answer = parse(text)
    return HeldOutReply(
        id=prompt.id,
        text=text,
        num_tokens=num_tokens,
        judgement=judge(answer, prompt.gold, view=prompt.pair.view, num_tokens=num_tokens),
        careful=is_careful(answer, prompt.gold.scene),
        num_triplets=count_triplets(answer),
    )
