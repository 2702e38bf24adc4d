"""What the rollout path costs beside vLLM itself: one JSON line last.

    taskset -c 0 python -m tests.bench.rollout [--rounds 7]      (about a minute)

The policy and engine settings of deploy/runs/tiny_cpu.toml, 16 prompts of two pictures with 8 samples each, all at
once. `of_raw_vllm`: answer tokens a second through a rollout worker (request, pictures, engine, trace, text) over those
of vLLM's own offline `LLM.generate` on the same prompts with the same settings, in turn in one process; every round has
prompts that neither has seen. Median over the rounds after the first.
"""

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from orchestrator.config import load_run_config
from rollout.actor import RolloutWorker
from rollout.engine import build_request, engine_arguments
from rollout.shm import SharedFiles
from tvr.dataset import load
from tvr.records import Prompt
from tvr.rendered import ensure

PROMPTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    print(json.dumps(asyncio.run(measure(parser.parse_args().rounds))))


async def measure(rounds: int) -> dict[str, float]:
    config = load_run_config(Path("deploy/runs/tiny_cpu.toml"))
    prompts = load(ensure(config.data), "train")
    worker = RolloutWorker(config.rollout, str(config.model), "bench")
    await worker.ready()
    files = SharedFiles("bench-raw")
    os.environ["VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME"] = files.name
    from vllm import LLM

    raw = LLM(**engine_arguments(config.rollout, str(config.model)))
    ours, theirs = [], []
    for number in range(rounds):
        chosen = prompts[number * PROMPTS : (number + 1) * PROMPTS]
        theirs.append(await asyncio.to_thread(raw_speed, raw, worker, chosen))
        ours.append(await our_speed(worker, chosen))
    await worker.shutdown()
    files.remove()
    ratios = [one / other for one, other in zip(ours[1:], theirs[1:], strict=True)]
    return {
        "of_raw_vllm": round(median(ratios), 3),
        "tokens_per_s": round(median(ours[1:])),
        "raw_tokens_per_s": round(median(theirs[1:])),
        "rounds": len(ratios),
    }


async def our_speed(worker: RolloutWorker, prompts: list[Prompt]) -> float:
    began = time.perf_counter()
    groups = await asyncio.gather(*(worker.sample(prompt, worker.config.samples_per_prompt, 0) for prompt in prompts))
    tokens = sum(len(sample.trace.token_ids) for group in groups for sample in group.samples)
    return tokens / (time.perf_counter() - began)


def raw_speed(llm: Any, worker: RolloutWorker, prompts: list[Prompt]) -> float:
    """The requests are made before the clock starts; vLLM prepares the pictures in both."""
    assert worker._engine is not None
    requests = [build_request(prompt, worker._engine._processor) for prompt in prompts]
    params = [
        worker._engine._sampling_params(prompt, worker.config.samples_per_prompt, 0, greedy=False) for prompt in prompts
    ]
    began = time.perf_counter()
    outputs = llm.generate(requests, params, use_tqdm=False)
    tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
    return tokens / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
