"""Ray: the cluster that is up, or a local one, and the actors placed on it.

Inside a Ray job (or with RAY_ADDRESS set) the run uses that cluster; otherwise it starts one on this machine and takes
it down at the end. Workers are plain classes; only here do they become actors.
"""

import logging
import math
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import ray

from learner.config import LearnerJob
from orchestrator.config import ConfigError, RunConfig
from orchestrator.ray_actors import LearnerActor, RolloutActor
from orchestrator.ray_roles import RayLearner, RayRollouts
from orchestrator.ray_scoring import RayScorer
from orchestrator.run_directory import RunDirectory
from reward_service.actor import RewardWorker

logger = logging.getLogger(__name__)

PACKAGES = ("tvr", "rollout", "learner", "reward_service", "orchestrator")
REWARD_CPUS = 0.1
ADDRESS_TIMEOUT_S = 10.0
MANY_CALLS = 10_000
"""At once, to an actor whose calls wait for each other inside: the window, not Ray, says how many there are."""
# Spin-waiting OpenMP threads starve a second engine on the same cores; compiled samplers make the first request slow.
CPU_ENV = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
ENV = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1"}


@contextmanager
def connected(config: RunConfig) -> Iterator[None]:
    """A cluster for the run: the one of RAY_ADDRESS, or a local one with a logical CPU for every worker.

    Raises ConfigError if there is no cluster at RAY_ADDRESS, or if workers would not run the code that runs here.
    """
    _check_same_code()
    if address := os.environ.get("RAY_ADDRESS"):
        _check_address(address)
        ray.init(log_to_driver=False)
        logger.info("using the Ray cluster at %s", address)
    else:
        os.environ.pop("RAY_ADDRESS", None)  # an empty one means a default cluster to Ray
        _lock_out_others()
        os.environ.setdefault("RAY_metrics_report_interval_ms", "2000")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # for a dashboard, and there is none
        wanted = config.rollout.workers + config.learner.ranks + math.ceil(_reward_cpus(config))
        num_cpus = max(wanted, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
        logger.info("started a local Ray with %d logical CPUs", num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _check_same_code() -> None:
    """Ray's workers look for modules in the directory that the run was started in before they look elsewhere."""
    here = str(Path.cwd())
    for package in PACKAGES:
        there, ours = PathFinder.find_spec(package, [here]), sys.modules[package].__spec__
        if there is not None and ours is not None and there.origin not in (None, ours.origin):
            raise ConfigError(
                f"{there.origin}: workers would import this, and the command runs {ours.origin}; start it in another "
                "directory, or install the package that is here (pip install -e .)"
            )


def _lock_out_others() -> None:
    """Ray's ports listen on every interface, and who can talk to them can run code: nobody can without this token.

    Ray asks for one in a new cluster, unless the user has set RAY_AUTH_MODE. It goes to the workers with the
    environment and to nobody else; without it here, Ray would use one that lies in the user's home.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it would advise how to open the door


def _check_address(address: str) -> None:
    """Ray itself would log for minutes before it gives up. What names no host and port is left to it."""
    host, colon, port = address.rpartition(":")
    remedy = "start a cluster there, or unset RAY_ADDRESS to use a local one"
    if address == "auto" or "://" in address:
        return
    if not (colon and host and port.isdigit()):
        raise ConfigError(f"RAY_ADDRESS={address}: is not HOST:PORT, for example 127.0.0.1:6379; {remedy}")
    try:
        socket.create_connection((host, int(port)), ADDRESS_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"RAY_ADDRESS={address}: no Ray answers there ({error}); {remedy}") from error


async def start_roles(
    config: RunConfig, out: Path, directory: RunDirectory | None = None
) -> tuple[RayRollouts, RayScorer, RayLearner]:
    """Place all workers and wait until they are ready.

    The learner goes on from the checkpoint in *directory*, which passes over damaged ones, and writes to *out*, an
    absolute path; the rollout workers serve the model that the run began with. Raises ConfigError if the cluster is too
    small for them, or no checkpoint is whole.
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
        checkpoint_timeout_s=config.checkpoint.timeout_s,
    )
    ranks = config.learner.ranks
    learner = RayLearner(
        [_actor(LearnerActor, 1).remote(config.learner, job, rank, ranks) for rank in range(ranks)],
        config.learner,
        config.checkpoint.timeout_s,
    )
    await learner.start(config.start_timeout_s, directory)  # first: without a whole checkpoint no engine is needed
    await rollouts.start(config.start_timeout_s)
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


def _reward_cpus(config: RunConfig) -> float:
    return REWARD_CPUS * config.reward_service.workers


def _check_room(config: RunConfig) -> None:
    """Raise ConfigError for what Ray would wait for without a word until `start_timeout_s` is over."""
    per_rollout = config.rollout.tensor_parallel_size if _has_gpus() else 1
    devices = config.rollout.workers * per_rollout + config.learner.ranks
    wanted = {"GPU": float(devices), "CPU": 0.0} if _has_gpus() else {"CPU": float(devices)}
    wanted["CPU"] += _reward_cpus(config)
    present = ray.cluster_resources()
    for kind, count in wanted.items():
        if count > present.get(kind, 0.0) + 1e-6:
            raise ConfigError(
                f"the run needs {count:g} {kind}s (rollout.workers {config.rollout.workers}, learner.ranks "
                f"{config.learner.ranks}, reward_service.workers {config.reward_service.workers} at {REWARD_CPUS} CPU) "
                f"and the cluster has {present.get(kind, 0):g}; add nodes or lower these numbers"
            )
