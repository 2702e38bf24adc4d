"""What the rollout path costs beside vLLM itself: one JSON line last.

    taskset -c 0 python -m tests.bench.rollout [--rounds 9]      (about a minute)

The policy and engine settings of deploy/runs/tiny_cpu.toml, 16 prompts of two pictures with 8 samples each, all at
once. `of_raw_vllm`: answer tokens a second through a rollout worker (request, pictures, engine, trace, text, and a
scorer that takes no time) over those of vLLM's own offline `LLM.generate` on the same prompts with the same settings.
Each side is a process of its own; they take turns, and every round has prompts that neither has seen. Median over the
rounds after the first two.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from orchestrator.config import RunConfig, load_run_config
from records.samples import Prompt, Sample, Score
from rollout.actor import RolloutWorker
from rollout.engine import RolloutEngine, engine_arguments
from rollout.shm import SharedFiles
from tasks.tvr.data.dataset import load
from tasks.tvr.data.rendered import ensure
from tasks.tvr.language.gold import Gold
from tests.fakes import make_score

PROMPTS = 16
UNCOUNTED = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    ensure(read_config().data)
    sides = {"ours": our_side, "raw": raw_side}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    connections = {}
    for name, side in sides.items():
        connections[name], theirs = get_context("spawn").Pipe()
        get_context("spawn").Process(target=run_side, args=(side, theirs), daemon=True).start()
        theirs.close()
        assert connections[name].recv() == "ready"
    for number in range(rounds):
        for name, connection in connections.items():
            connection.send(number)
            speeds[name].append(connection.recv())
        print(f"round {number}: {speeds['ours'][-1]:,.0f} of {speeds['raw'][-1]:,.0f} tokens/s", flush=True)
    for connection in connections.values():
        connection.send(None)
    counted = {name: found[UNCOUNTED:] for name, found in speeds.items()}
    ratios = [ours / raw for ours, raw in zip(counted["ours"], counted["raw"], strict=True)]
    result = {
        "of_raw_vllm": round(median(ratios), 3),
        "tokens_per_s": round(median(counted["ours"])),
        "raw_tokens_per_s": round(median(counted["raw"])),
        "rounds": len(ratios),
    }
    print(json.dumps(result))


def read_config() -> RunConfig:
    return load_run_config(Path("deploy/runs/tiny_cpu.toml"))


def chosen(prompts: list[Prompt], number: int) -> list[Prompt]:
    """Of round *number*."""
    return prompts[number * PROMPTS : (number + 1) * PROMPTS]


def run_side(side: Callable[[Connection], Coroutine[Any, Any, None]], connection: Connection) -> None:
    asyncio.run(side(connection))


class Free:
    """Scores without looking."""

    async def score(self, gold: Gold, sample: Sample) -> Score:
        return make_score(1.0)


async def our_side(connection: Connection) -> None:
    """Answers the number of a round with the tokens per second that it made."""
    config = read_config()
    prompts = load(ensure(config.data), "train")
    worker = RolloutWorker(config.rollout, str(config.model), "bench", Free())
    await worker.ready()
    connection.send("ready")
    while (number := await asyncio.to_thread(connection.recv)) is not None:
        began = time.perf_counter()
        scored = await asyncio.gather(*(worker.sample(prompt, 0) for prompt in chosen(prompts, number)))
        tokens = sum(len(sample.trace.token_ids) for one in scored for sample in one.group.samples)
        connection.send(tokens / (time.perf_counter() - began))
    await worker.shutdown()


async def raw_side(connection: Connection) -> None:
    """The same by vLLM alone. The requests are made before the clock starts; vLLM prepares the pictures in both."""
    from transformers import AutoProcessor
    from vllm import LLM

    from rollout.engine import build_request

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    config = read_config()
    prompts = load(ensure(config.data), "train")
    files = SharedFiles("bench-raw")
    os.environ["VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME"] = files.name
    processor = AutoProcessor.from_pretrained(config.model)
    llm = LLM(**engine_arguments(config.rollout, str(config.model)))
    connection.send("ready")
    while (number := connection.recv()) is not None:
        requests = [build_request(prompt, processor, f"{number}-{prompt.id}") for prompt in chosen(prompts, number)]
        params = [sampling_params(config, prompt) for prompt in chosen(prompts, number)]
        began = time.perf_counter()
        outputs = llm.generate(requests, params, use_tqdm=False)
        tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
        connection.send(tokens / (time.perf_counter() - began))
    files.remove()


def sampling_params(config: RunConfig, prompt: Prompt) -> Any:
    """Ours, but for the output that an offline call wants."""
    from vllm.sampling_params import RequestOutputKind

    engine = object.__new__(RolloutEngine)
    engine.config = config.rollout
    params = engine._sampling_params(prompt, config.rollout.samples_per_prompt, 0, greedy=False)
    params.output_kind, params.stream_interval = RequestOutputKind.FINAL_ONLY, None
    return params


if __name__ == "__main__":
    main()
