"""One learner rank in a process of its own, for the tests: MODEL FOLDER WORLD_SIZE PORT RANK.

Reads FOLDER/jobs.pickle, a dict of jobs by name, and writes FOLDER/rank_RANK.pickle. A job is a dict with `config` (of
LearnerConfig), `steps` (the groups of each step) and, if wanted, `job` (of LearnerJob), `save` (a folder), `model` (one
that an earlier job saved), `reference` (a model), `resume` (a checkpoint to go on from), `checkpoint_after` (a number
of steps), `imitate` (true: supervised steps), `logits_at_once` (of `learner.head`), `shard_bytes` (of
`learner.saving`). Its result holds the StepReport or the error of each step, the gradient of the first update that was
applied, the parameters before and after each step, the log-probs of the last step's groups at both ends, the weight
buckets at the end and what they were said to be at the start, what NCCL would send, the bytes of its share of a
checkpoint, and how many numbers of each kind of tensor it read of the one that it went on from. All jobs run one after
the other in one process group.
"""

import pickle
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner import head, saving
from learner.actor import LearnerRank
from learner.checkpoint import Checkpoint, open_checkpoint
from learner.config import LearnerConfig, LearnerJob
from learner.engine import NonFiniteStep
from records.manifest import TensorInfo
from records.samples import Prompt, ScoredGroup
from tasks.tvr.task import TASK

BUCKET_BYTES = 400_000
LOGITS_AT_ONCE = head.LOGITS_AT_ONCE
SHARD_BYTES = saving.SHARD_BYTES


def main() -> None:
    model, folder, world_size, port, rank = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    jobs = pickle.loads((folder / "jobs.pickle").read_bytes())
    results = {name: run_job(job, model, folder / name, rank, world_size, port) for name, job in jobs.items()}
    (folder / f"rank_{rank}.pickle").write_bytes(pickle.dumps(results))


def run_job(job: dict[str, Any], model: str, folder: Path, rank: int, world_size: int, port: int) -> dict[str, Any]:
    head.LOGITS_AT_ONCE = job.get("logits_at_once", LOGITS_AT_ONCE)
    saving.SHARD_BYTES = job.get("shard_bytes", SHARD_BYTES)
    config, model = LearnerConfig(**job["config"], ranks=world_size), job.get("model", model)
    settings = {"folder": str(folder), "temperature": 1.0, "max_answer_tokens": 16, "steps": 10} | job.get("job", {})
    reference = job.get("reference", model)
    learner = LearnerRank(config, LearnerJob(model=model, reference=reference, **settings), rank, world_size)
    result: dict[str, Any] = {"reports": [], "gradient": None}
    checkpoint = open_checkpoint(Path(job["resume"])) if "resume" in job else None
    with counted_reads() as result["read"]:
        result["start"] = learner.connect("127.0.0.1", port, checkpoint)
    groups = tuple(scored.group for scored in job["steps"][-1])
    result["parameters"] = [read_parameters(learner)]
    result["infos_at_start"] = [infos for infos, _ in read_buckets(learner)]
    result["logprobs"] = [learner.logprobs(groups)]
    for step in job["steps"]:
        try:
            if job.get("imitate"):
                result["reports"].append(learner.imitate(*right_answers(step)))
            else:
                result["reports"].append(learner.step(step))
        except NonFiniteStep as error:
            result["reports"].append(error)
        else:
            result["gradient"] = result["gradient"] or read_first_gradient(learner, config)
            if len(result["reports"]) == job.get("checkpoint_after"):
                learner.save_checkpoint()
        result["parameters"].append(read_parameters(learner))
    learner.finish_checkpoint()
    result["logprobs"].append(learner.logprobs(groups))
    result["version"] = learner.version()
    result["snapshot_bytes"] = learner.snapshot_bytes()[1]
    result["buckets"] = read_buckets(learner)
    result["declared"] = learner.manifest(learner.version()).tensors
    if "save" in job:
        learner.save_model(job["save"])
    return result


def read_buckets(learner: LearnerRank) -> list[tuple[tuple[TensorInfo, ...], dict[str, np.ndarray]]]:
    """Those of this rank's turns; the others are empty."""
    return [learner.weight_bucket(index) for index in range(learner.weight_bucket_count(BUCKET_BYTES))]


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """By kind of tensor, the numbers that are taken from a checkpoint."""
    counts: Counter[str] = Counter()
    parts = Checkpoint.parts

    def counted_parts(self: Checkpoint, wanted: Any) -> Iterator[Any]:
        wanted = list(wanted)
        for (name, _, _), part in zip(wanted, parts(self, wanted), strict=True):
            counts[name.split("/")[0]] += part.numel()
            yield part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "parts", counted_parts)
        yield counts


def read_parameters(learner: LearnerRank) -> dict[str, torch.Tensor]:
    """All of them, adapters merged, frozen ones too; on rank 0 only."""
    engine = learner._engine
    assert engine is not None
    with engine.gathered([name for name, _, _ in engine.parameters()]) as tensors:
        return {name: tensor.clone() for name, tensor in tensors.items()} if engine.rank == 0 else {}


def read_first_gradient(learner: LearnerRank, config: LearnerConfig) -> dict[str, torch.Tensor]:
    """The (clipped) gradient of the first update: Adam's first moment is then `(1 - beta1) * gradient`."""
    from deepspeed.utils import safe_get_full_optimizer_state

    engine = learner._engine
    assert engine is not None
    gradient = {}
    for name, parameter in engine._trained.items():
        if config.zero_stage == 0:
            moment = engine._engine.optimizer.state[parameter]["exp_avg"]
        else:
            moment = safe_get_full_optimizer_state(parameter, "exp_avg")
        whole = moment.reshape(parameter.ds_shape if config.zero_stage == 3 else parameter.shape)
        gradient[name] = whole.cpu().clone() / (1 - config.beta1)
    return gradient


def right_answers(groups: Sequence[ScoredGroup]) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """Their prompts, and what `sft` learns as the answers."""
    prompts = tuple(scored.group.prompt for scored in groups)
    return prompts, tuple(TASK.right_answer(prompt.gold, "answer") for prompt in prompts)


if __name__ == "__main__":
    main()
