"""What it costs to keep what was sampled: CPU seconds of the thread that writes it, for each step. One JSON line last.

    python -m tests.bench.traces [--steps 128]      (about 10 seconds)

Steps as `deploy/runs/tiny_cpu.toml` makes them (8 groups of 8 answers, 45 tokens), and as a 7B would (16 groups of
8, 600 tokens), written one after another, files put together included.

- cpu_ms: of a step, the mean; bytes: of a sample, on the disk.
- share_of_step: *cpu_ms* over the step's time, 0.7 s as measured on two cores; of the large one 60 s, which is a guess.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from orchestrator.config import TracesConfig
from orchestrator.run.traces import TRACES, Traces
from records.samples import (
    Origin,
    PolicyVersion,
    Sample,
    SampleGroup,
    SampleTimes,
    ScoredGroup,
    StepReport,
    Trace,
    VersionSpan,
)
from tasks.tvr.task import TASK
from tests.fakes import TRUE_REPLY, make_prompt, make_score

SHAPES = {"tiny": (8, 8, 45, 0.7), "7B": (16, 8, 600, 60.0)}
"""Groups, answers to each, tokens, seconds a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=128)
    steps = parser.parse_args().steps
    found = {}
    for name, (groups, samples, tokens, step_s) in SHAPES.items():
        made = tuple(make_group(number, samples, tokens) for number in range(groups))
        logprobs = tuple(tuple(sample.trace.logprobs for sample in group.group.samples) for group in made)
        with tempfile.TemporaryDirectory() as folder:
            kept = Traces(Path(folder), TracesConfig(), TASK, lambda event, **facts: None, PolicyVersion(0))
            cpu_s = 0.0
            for step in range(1, steps + 1):
                report = StepReport(version=PolicyVersion(step), loss=0.0, grad_norm=1.0, tokens=1, logprobs=logprobs)
                kept.keep(report, made, time.time())
                cpu_s = kept._thread.submit(time.thread_time).result()  # since it began
            kept.close()
            size = sum(path.stat().st_size for path in (Path(folder) / TRACES).iterdir())
        cpu_ms = 1000 * cpu_s / steps
        found[name] = {
            "cpu_ms": round(cpu_ms, 2),
            "bytes": round(size / (steps * groups * samples)),
            "share_of_step": round(cpu_ms / 1000 / step_s, 5),
        }
        print(f"{name}: {found[name]}", flush=True)
    print(json.dumps(found))


def make_group(number: int, samples: int, tokens: int) -> ScoredGroup:
    """Log-probs and tokens as hard to pack as real ones."""
    random, prompt = np.random.default_rng(number), make_prompt(f"{number}/basic/center")
    made = tuple(
        Sample(
            id=f"{prompt.id}#{index}",
            trace=Trace(
                prompt_token_ids=np.arange(200, dtype=np.int32),
                token_ids=random.integers(0, 50_000, tokens, dtype=np.int32),
                logprobs=-random.exponential(0.5, tokens).astype(np.float32),
                versions=(VersionSpan(version=PolicyVersion(3), start=0, end=tokens),),
                finish="stop",
            ),
            text=TRUE_REPLY.replace("0 turned blue", "0 turned blue " * (tokens // 4)),
            times=SampleTimes(first_token=1e9 + index, ended=1e9 + index + 1),
        )
        for index in range(samples)
    )
    origin = Origin(worker="rollout-0", asked=1e9, scored=(1e9 + 2,) * samples)
    scores = tuple(make_score(float(index % 3)) for index in range(samples))
    return ScoredGroup(group=SampleGroup(prompt=prompt, samples=made), scores=scores, origin=origin)


if __name__ == "__main__":
    main()
