"""The learner's step on one core: shared-prompt rows against one row a sample, DeepSpeed against plain PyTorch, and how
near the arithmetic peak it comes. One JSON line last.

    taskset -c 0 python -m tests.bench.learner                      (both policies: about 25 minutes)
    taskset -c 0 python -m tests.bench.learner --policies tiny      (about 3 minutes)

16 prompts of two 160x120 pictures, 8 samples of 64 tokens. Everything that is compared is done in turn in one process
on the same batch; figures are medians. Pictures are read and encoded before the clock starts.

- shared_prompt_speedup: time of a step with one row a sample over that with shared rows; by_group_size: the same for
  other numbers of samples a prompt, 4 prompts.
- peak_share: the step's useful arithmetic (matrix products, and attention to what is seen) per second, over that of a
  matrix product of 2048 x 2048, float32, timed in turn with the steps.
- memory_ratio: how far memory rises in a step, shared rows over one row a sample, the same samples in a pass.
- deepspeed_overhead: time of a step over that of PyTorch's own backward, clip and AdamW on the same passes.
"""

import argparse
import ctypes
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch.utils.flop_counter import FlopCounterMode

from learner.actor import LearnerRank
from learner.batch import Batch, BatchRow, answer_logprobs, collate, lay_out_prompt, one_sample_a_row, shared_prompt
from learner.config import LearnerConfig, LearnerJob
from learner.encode import PictureEncoder
from learner.engine import Engine, Loss
from learner.loss import SUMS, join_tokens, policy_loss, step_tokens
from learner.policy import load_policy
from records.samples import ScoredGroup
from tests.bench.policies import make_policy
from tests.learner.made_groups import make_group

ANSWER_TOKENS = 64
SIZE = (160, 120)
GROUPS_A_PASS = 4
CONFIG = LearnerConfig(learning_rate=1e-6)

Passes = list[tuple[Batch, Loss]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", choices=("tiny", "30M"), default=["tiny", "30M"])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    for policy in options.policies:
        with tempfile.TemporaryDirectory() as folder:
            for key, value in measure(policy, Path(folder), options.prompts, options.repeats).items():
                found.setdefault(key, {})[policy] = value
    print(json.dumps(found))


def measure(policy: str, folder: Path, prompts: int, repeats: int) -> dict[str, Any]:
    parameters = make_policy(policy, folder)
    _meeting, engine = start_engine(folder)
    groups = [make_group(seed, [ANSWER_TOKENS] * 8, sizes=(SIZE, SIZE)) for seed in range(prompts)]
    shared, per_sample = lay_out(engine, folder, groups)
    update = partial(engine.update, names=SUMS, step=1)
    plain = PlainPyTorch(folder)
    peak = Peak()
    times = in_turn(
        repeats,
        {
            "shared": lambda: update(shared),
            "peak": peak.run,
            "per sample": lambda: update(per_sample),
            "plain": lambda: plain.update(shared),
        },
    )
    middle = {name: median(seconds) for name, seconds in times.items()}
    report = {
        "parameters": parameters,
        "step_s": round(middle["shared"], 3),
        "shared_prompt_speedup": round(middle["per sample"] / middle["shared"], 2),
        "peak_share": round(useful_flops(engine, shared) / middle["shared"] / (peak.flops / middle["peak"]), 3),
        "peak_gflops": round(peak.flops / middle["peak"] / 1e9, 1),
        "memory_ratio": round(rise_of_memory(lambda: update(shared)) / rise_of_memory(lambda: update(per_sample)), 3),
        "deepspeed_overhead": round(middle["shared"] / middle["plain"], 3),
        "by_group_size": by_group_size(engine, folder, repeats) if policy == "tiny" else {},
    }
    for key, value in report.items():
        print(f"{policy} {key}: {value}", flush=True)
    return report


def start_engine(folder: Path) -> tuple[LearnerRank, Engine]:
    """The first holds the meeting that the second is at."""
    job = LearnerJob(
        model=str(folder),
        reference=str(folder),
        folder=str(folder / "run"),
        temperature=1.0,
        max_answer_tokens=ANSWER_TOKENS,
        steps=1_000_000,
    )
    meeting = LearnerRank(CONFIG, job, 0, 1)
    host, port = meeting.host_meeting()
    return meeting, Engine(CONFIG, job, rank=0, world_size=1, master_addr=host, master_port=port)


def lay_out(engine: Engine, folder: Path, groups: Sequence[ScoredGroup]) -> tuple[Passes, Passes]:
    """The passes of a step in both layouts; those of the same place hold the same samples."""
    encoder = PictureEncoder(folder)
    rope = engine.model.model.get_rope_index
    rows = []
    for group in (scored.group for scored in groups):
        pictures = encoder.encode(group.prompt, shared_prompt(group))
        prompted = lay_out_prompt(group, pictures, encoder.image_token_id, rope)
        rows.append(BatchRow(prompted=prompted, answers=tuple(sample.trace.token_ids for sample in group.samples)))
    tokens = step_tokens(groups, CONFIG.loss, ANSWER_TOKENS)
    shared, per_sample = [], []
    for first in range(0, len(rows), GROUPS_A_PASS):
        chosen = slice(first, first + GROUPS_A_PASS)
        joined = join_tokens([part for parts in tokens[chosen] for part in parts], engine.device)
        loss = partial(policy_loss, tokens=joined, config=CONFIG.loss)
        shared.append((collate(rows[chosen]), loss))
        per_sample.append((collate(one_sample_a_row(rows[chosen])), loss))
    return shared, per_sample


class PlainPyTorch:
    """The same step without DeepSpeed."""

    def __init__(self, folder: Path) -> None:
        self._model = load_policy(CONFIG, str(folder), torch.device("cpu"))
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=CONFIG.learning_rate, weight_decay=0.0)

    def update(self, passes: Passes) -> None:
        for batch, loss in passes:
            loss(answer_logprobs(self._model, batch, 1.0)).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CONFIG.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()


class Peak:
    """Products of 2048 x 2048 matrices."""

    side, count = 2048, 8
    flops = count * 2 * side**3

    def __init__(self) -> None:
        self._left, self._right = torch.randn(2, self.side, self.side)

    def run(self) -> None:
        for _ in range(self.count):
            self._left @ self._right


def in_turn(repeats: int, tasks: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each task, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(repeats):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - began)
    return times


def useful_flops(engine: Engine, passes: Passes) -> int:
    """Of matrix products and convolutions by PyTorch's counter. Its attention counts what a mask hides too, and it does
    not know the CPU's: that is counted here for each pair that is seen, 4 operations a feature forward, 8 backward.
    """
    with FlopCounterMode(display=False) as counter:
        engine.update(passes, SUMS, step=1)
    text, vision = engine.model.config.text_config, engine.model.config.vision_config
    pairs = 0
    for batch, _ in passes:
        for span in batch.spans:
            answers = span.seen.sum() * len(span.answers)
            pairs += text.num_hidden_layers * text.hidden_size * int(span.prompt_length**2 // 2 + answers)
        patches = batch.image_grid_thw.prod(-1)
        pairs += vision.depth * vision.hidden_size * int((patches**2).sum())
    return counter.get_total_flops() + 12 * pairs


def rise_of_memory(task: Callable[[], Any]) -> int:
    """Bytes that the resident memory rises above where it stood (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    task()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    (kib,) = re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) * 1024


def by_group_size(engine: Engine, folder: Path, repeats: int) -> dict[int, float]:
    found = {}
    for size in (1, 2, 4, 8, 16):
        groups = [make_group(seed, [ANSWER_TOKENS] * size, sizes=(SIZE, SIZE)) for seed in range(4)]
        shared, per_sample = lay_out(engine, folder, groups)
        update = partial(engine.update, names=SUMS, step=1)
        times = in_turn(repeats, {"shared": lambda: update(shared), "per sample": lambda: update(per_sample)})  # noqa: B023
        found[size] = round(median(times["per sample"]) / median(times["shared"]), 2)
    return found


if __name__ == "__main__":
    main()
