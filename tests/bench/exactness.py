"""How far layouts, and numbers of ranks, differ in float32: one JSON line last.

    python -m tests.bench.exactness      (about two minutes)

- layouts: over random groups (1 to 16 answers, 1 to 20 tokens, pictures of all sizes), the largest absolute difference
  of log-probs and of gradients of shared rows from one row a sample, split rows, and transformers' own forward pass.
- ranks: the norm of the difference of a step's gradients on 2 and 4 ranks from one rank's, over its norm, by stage.
"""

import json
import os
import tempfile
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from learner.batch import answer_logprobs, collate, one_sample_a_row
from learner.config import LearnerConfig
from learner.encode import PictureEncoder
from learner.policy import load_policy
from tests.learner.made_groups import make_group
from tests.learner.plain_step import gradient_difference
from tests.learner.ranks import run_ranks, write_policy
from tests.learner.test_layouts import TEMPERATURE, build_rows, draw_case, run, transformers_logprobs

CASES = 40
BASE = {"learning_rate": 1e-3, "max_grad_norm": 1000.0, "row_tokens": 512}


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        policy = Path(name) / "policy"
        write_policy(policy)
        print(json.dumps({"layouts": compare_layouts(str(policy)), "ranks": compare_ranks(str(policy), Path(name))}))


def compare_layouts(folder: str) -> dict[str, dict[str, float]]:
    encoder = PictureEncoder(folder)
    found: dict[str, dict[str, float]] = {}
    for seed in range(CASES):
        policy = load_policy(LearnerConfig(), folder, torch.device("cpu"))
        groups = [make_group(index, **case).group for index, case in enumerate(draw_case(seed))]
        rows = build_rows(policy, encoder, groups, row_tokens=100_000)
        split = build_rows(policy, encoder, groups, row_tokens=len(rows[0].prompted.prompt) + 20)
        layouts = {"shared": rows, "split": split, "per sample": one_sample_a_row(rows)}
        results = {
            key: run(policy, answer_logprobs(policy, collate(laid_out), TEMPERATURE))
            for key, laid_out in layouts.items()
        }
        policy.set_attn_implementation("sdpa")
        results["transformers"] = run(policy, transformers_logprobs(policy, encoder, groups))
        for key in ("split", "per sample", "transformers"):
            gaps = [
                float(np.abs(one - other).max()) for one, other in zip(results["shared"], results[key], strict=True)
            ]
            largest = found.setdefault(key, {"logprobs": 0.0, "gradients": 0.0})
            for kind, gap in zip(largest, gaps, strict=True):
                largest[kind] = max(largest[kind], gap)
    return found


def compare_ranks(policy: str, root: Path) -> dict[str, dict[str, float]]:
    step = tuple(make_group(seed, [3, 14, 1, 6], sizes=((96, 48), (48, 80))) for seed in range(6))
    results = {}
    for world_size in (1, 2, 4):
        jobs = {f"stage {n}": {"config": BASE | {"zero_stage": n}, "steps": [step]} for n in range(4)}
        folder = root / f"ranks_{world_size}"
        folder.mkdir()
        results[world_size] = run_ranks(policy, folder, world_size, jobs)[0]
    return {
        stage: {
            f"{world_size} ranks": gradient_difference(results[world_size][stage]["gradient"], alone["gradient"])
            for world_size in (2, 4)
        }
        for stage, alone in results[1].items()
    }


if __name__ == "__main__":
    main()
