"""A worker that has served nothing before, in a process of its own: one process holds one engine."""

import asyncio
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from records.samples import Prompt, Sample
from rollout.actor import RolloutWorker
from rollout.config import RolloutConfig


def answers_of_a_fresh_engine(config: RolloutConfig, model: Path, prompts: list[Prompt]) -> list[Sample]:
    """Greedy, one prompt after another."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(_start_and_answer, config, model, prompts).result(timeout=120)


def _start_and_answer(config: RolloutConfig, model: Path, prompts: list[Prompt]) -> list[Sample]:
    return asyncio.run(_answer(config, model, prompts))


async def _answer(config: RolloutConfig, model: Path, prompts: list[Prompt]) -> list[Sample]:
    worker = RolloutWorker(config, str(model), "fresh")
    await worker.ready()
    answers = [await worker.answer(prompt) for prompt in prompts]
    await worker.shutdown()
    return answers
