"""One learner rank in a process of its own, for the tests: MODEL FOLDER WORLD_SIZE PORT RANK.

Reads FOLDER/jobs.pickle, a dict of jobs by name, and writes FOLDER/rank_RANK.pickle. A job is a dict with `config` (of
LearnerConfig), `steps` (the groups of each step) and, if wanted, `save` (a folder). Its result holds the StepReport or
the error of each step, the gradient of the first update that was applied, the parameters before and after, the
log-probs of the first groups at both times, and the weight buckets. All jobs run one after the other in one process
group.
"""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import safetensors.torch
import torch

from learner.actor import LearnerRank
from learner.config import LearnerConfig
from learner.engine import NonFiniteStep

BUCKET_BYTES = 400_000


def main() -> None:
    model, folder, world_size, port, rank = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    jobs = pickle.loads((folder / "jobs.pickle").read_bytes())
    results = {name: run_job(job, model, rank, world_size, port) for name, job in jobs.items()}
    (folder / f"rank_{rank}.pickle").write_bytes(pickle.dumps(results))


def run_job(job: dict[str, Any], model: str, rank: int, world_size: int, port: int) -> dict[str, Any]:
    config = LearnerConfig(**job["config"], ranks=world_size)
    learner = LearnerRank(config, model, rank, world_size, temperature=job.get("temperature", 1.0), seed=0)
    learner.connect("127.0.0.1", port)
    groups = tuple(scored.group for scored in job["steps"][-1])
    result: dict[str, Any] = {"reports": [], "parameters": [read_parameters(learner)], "gradient": None}
    result["logprobs"] = [learner.logprobs(groups)]
    for step in job["steps"]:
        try:
            result["reports"].append(learner.step(step))
        except NonFiniteStep as error:
            result["reports"].append(error)
        else:
            result["gradient"] = result["gradient"] or read_first_gradient(learner, config)
        result["parameters"].append(read_parameters(learner))
    result["logprobs"].append(learner.logprobs(groups))
    result["version"] = learner.version()
    result["buckets"] = [learner.weight_bucket(index) for index in range(learner.weight_bucket_count(BUCKET_BYTES))]
    if "save" in job:
        learner.save_model(job["save"])
    return result


def read_parameters(learner: LearnerRank) -> dict[str, torch.Tensor]:
    """Through the weight buckets, as a rollout worker would get them; rank 0 only."""
    buckets = [learner.weight_bucket(index) for index in range(learner.weight_bucket_count(BUCKET_BYTES))]
    return {name: tensor for data in buckets if data for name, tensor in safetensors.torch.load(data).items()}


def read_first_gradient(learner: LearnerRank, config: LearnerConfig) -> dict[str, torch.Tensor]:
    """The (clipped) gradient of the first update: Adam's first moment is then `(1 - beta1) * gradient`."""
    from deepspeed.utils import safe_get_full_optimizer_state

    engine = learner._engine
    assert engine is not None
    gradient = {}
    for name, parameter in engine.model.named_parameters():
        if config.zero_stage == 0:
            moment = engine._engine.optimizer.state[parameter]["exp_avg"]
        else:
            moment = safe_get_full_optimizer_state(parameter, "exp_avg")
        gradient[name] = moment.reshape(parameter.ds_shape if config.zero_stage == 3 else parameter.shape).clone() / (
            1 - config.beta1
        )
    return gradient


if __name__ == "__main__":
    main()
