"""Host memory of a learner rank at 98 M parameters, while it loads and while it goes on from a checkpoint, on a CPU
(Linux). One JSON line last.

    python -m tests.bench.memory [--policy 100M] [--layouts 1x2 1x3 2x2 2x3]                    (about 6 minutes)

A layout is ranks x ZeRO stage. Each rank is a process of its own, float32 as in deploy/runs/tiny_cpu.toml; it makes one
step and writes a checkpoint, and then other processes go on from that. Figures are of the rank with the most, in MB:

- load, resume: how far its resident memory rises at most from before `connect` to its end, all its pages counted.
- load_own, resume_own: the same of the pages that are its alone; the others are of files, which all processes share and
  the kernel drops when it needs the room. Read every 2 ms.
- after: what it holds when it has loaded, its own pages.
"""

import argparse
import json
import os
import re
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from learner.actor import CHECKPOINTS, LearnerRank
from learner.checkpoint import Checkpoint, open_checkpoint
from learner.config import LearnerConfig, LearnerJob
from tests.bench.policies import SIZES, make_policy
from tests.learner.made_groups import make_group

SAMPLE_S = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=SIZES, default="100M")
    parser.add_argument("--layouts", nargs="+", default=["1x2", "1x3", "2x2", "2x3"])
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        found["parameters"] = make_policy(options.policy, model)
        for layout in options.layouts:
            ranks, stage = map(int, layout.split("x"))
            found[layout] = measure(model, Path(folder) / layout, ranks, stage)
            print(f"{layout}: {found[layout]}", flush=True)
    print(json.dumps(found))


def measure(model: Path, run: Path, ranks: int, stage: int) -> dict[str, int]:
    config = LearnerConfig(ranks=ranks, zero_stage=stage)
    settings = {"temperature": 1.0, "max_answer_tokens": 16, "steps": 10}
    job = LearnerJob(model=str(model), reference=str(model), folder=str(run), **settings)
    loaded = in_processes(config, job, None)
    resumed = in_processes(config, job, open_checkpoint(run / CHECKPOINTS / "step-000001"))
    return {
        "load": loaded["all"],
        "load_own": loaded["own"],
        "resume": resumed["all"],
        "resume_own": resumed["own"],
        "after": resumed["after"],
    }


def in_processes(config: LearnerConfig, job: LearnerJob, checkpoint: Checkpoint | None) -> dict[str, int]:
    """Each figure of the rank that has the most."""
    meeting = LearnerRank(config, job, 0, config.ranks)
    host, port = meeting.host_meeting()
    with ProcessPoolExecutor(config.ranks, mp_context=get_context("spawn")) as pool:
        calls = [pool.submit(run_rank, config, job, rank, host, port, checkpoint) for rank in range(config.ranks)]
        figures = [call.result() for call in calls]
    return {key: max(each[key] for each in figures) for key in figures[0]}


def run_rank(
    config: LearnerConfig, job: LearnerJob, rank: int, host: str, port: int, checkpoint: Checkpoint | None
) -> dict[str, int]:
    import deepspeed  # noqa: F401  (before the memory is read)

    torch.set_num_threads(1)
    learner = LearnerRank(config, job, rank, config.ranks)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, own_before = resident("VmRSS"), resident("RssAnon")
    with OwnPages() as own:
        learner.connect(host, port, checkpoint)
    figures = {
        "all": resident("VmHWM") - before,
        "own": own.most - own_before,
        "after": resident("RssAnon") - own_before,
    }
    if checkpoint is None:
        learner.step(tuple(make_group(seed, [3, 2]) for seed in range(config.ranks)))
        learner.save_checkpoint()
    learner.close()
    return figures


class OwnPages:
    """The most of them that was seen while it is entered, which the kernel does not keep."""

    def __enter__(self) -> "OwnPages":
        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.most = max(self.most, resident("RssAnon"))


def resident(key: str) -> int:
    """MB."""
    (kib,) = re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) * 1024 // 1_000_000


if __name__ == "__main__":
    main()
