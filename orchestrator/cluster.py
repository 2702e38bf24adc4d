"""Ray: the cluster that is up, or a local one, and the actors placed on it.

Inside a Ray job (or with RAY_ADDRESS set) the run uses that cluster; otherwise it starts one on this machine and takes
it down at the end. Workers are plain classes; only here do they become actors.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from learner.config import LearnerJob
from orchestrator.config import ConfigError, RunConfig
from orchestrator.ray_actors import LearnerActor, RolloutActor
from orchestrator.ray_roles import RayLearner, RayRollouts
from orchestrator.ray_scoring import RayScorer
from reward_service.actor import RewardWorker

logger = logging.getLogger(__name__)

REWARD_CPUS = 0.1
MANY_CALLS = 10_000
"""At once, to an actor whose calls wait for each other inside: the window, not Ray, says how many there are."""
# Spin-waiting OpenMP threads starve a second engine on the same cores; compiled samplers make the first request slow.
CPU_ENV = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
ENV = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1"}


@contextmanager
def connected(config: RunConfig) -> Iterator[None]:
    """A cluster for the run: the one of RAY_ADDRESS, or a local one with a logical CPU for every worker."""
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
        logger.info("using the Ray cluster at %s", os.environ["RAY_ADDRESS"])
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster of this process alone, on the loopback
        os.environ.setdefault("RAY_metrics_report_interval_ms", "2000")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # for a dashboard, and there is none
        wanted = config.rollout.workers + config.learner.ranks + 1
        num_cpus = max(wanted, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
        logger.info("started a local Ray with %d logical CPUs", num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


async def start_roles(
    config: RunConfig, out: Path, checkpoint: Path | None = None
) -> tuple[RayRollouts, RayScorer, RayLearner]:
    """Place all workers and wait until they are ready.

    The learner goes on from *checkpoint* and writes to *out*, both absolute; the rollout workers serve the model that
    the run began with. Raises ConfigError if the cluster is too small for them.
    """
    _check_room(config)
    model = str(config.model.resolve())
    scorers = ray.remote(num_cpus=REWARD_CPUS, max_concurrency=MANY_CALLS, runtime_env={"env_vars": ENV})(RewardWorker)
    scorer = RayScorer(
        [scorers.remote(config.reward_service) for _ in range(config.reward_service.workers)], config.reward_service
    )
    workers = [place_rollout_worker(config, scorer, index) for index in range(config.rollout.workers)]
    rollouts = RayRollouts(workers, config.rollout)
    job = LearnerJob(
        model=model,
        reference=model,
        folder=str(out),
        temperature=config.rollout.temperature,
        max_answer_tokens=config.rollout.max_answer_tokens,
        steps=config.loop.steps,
        seed=config.seed,
        keep_checkpoints=config.checkpoint.keep,
    )
    ranks = config.learner.ranks
    learner = RayLearner(
        [_actor(LearnerActor, 1).remote(config.learner, job, rank, ranks) for rank in range(ranks)], config.learner
    )
    await rollouts.start(config.start_timeout_s)
    await learner.start(config.start_timeout_s, checkpoint)
    await scorer.start(config.start_timeout_s)
    return rollouts, scorer, learner


def place_rollout_worker(config: RunConfig, scorer: RayScorer, index: int) -> Any:
    """The actor number *index*, which is not ready yet."""
    actor = _actor(RolloutActor, config.rollout.tensor_parallel_size).options(max_concurrency=MANY_CALLS)
    return actor.remote(config.rollout, str(config.model.resolve()), f"rollout-{index}", scorer)


def _has_gpus() -> bool:
    return ray.cluster_resources().get("GPU", 0) > 0


def _actor(worker: type, num_devices: int) -> Any:
    """An actor class of *worker* with *num_devices* GPUs (not yet run on a GPU), or one CPU where there is no GPU."""
    if _has_gpus():
        return ray.remote(num_gpus=num_devices, runtime_env={"env_vars": ENV})(worker)
    return ray.remote(num_cpus=1, runtime_env={"env_vars": {**ENV, **CPU_ENV}})(worker)


def _check_room(config: RunConfig) -> None:
    kind = "GPU" if _has_gpus() else "CPU"
    per_rollout = config.rollout.tensor_parallel_size if kind == "GPU" else 1
    wanted = config.rollout.workers * per_rollout + config.learner.ranks
    present = ray.cluster_resources().get(kind, 0)
    if wanted > present:
        raise ConfigError(
            f"the run needs {wanted} {kind}s (rollout.workers {config.rollout.workers}, learner.ranks "
            f"{config.learner.ranks}) and the cluster has {present:g}; add nodes or lower these numbers"
        )
