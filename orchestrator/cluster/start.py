"""Ray: the cluster that is up, or a local one, and the actors placed on it.

Inside a Ray job (or with RAY_ADDRESS set) the run uses that cluster; otherwise it starts one on this machine and takes
it down at the end. Workers are plain classes; only here do they become actors.
"""

import logging
import math
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray

from learner.config import LearnerJob
from orchestrator.cluster.actors import LearnerActor, RolloutActor
from orchestrator.cluster.placement import place_learner, place_reward_workers, place_rollout_worker, wanted
from orchestrator.cluster.roles import Checkpoints, RayLearner, RayRollouts
from orchestrator.cluster.scoring import RayScorer
from orchestrator.config import ConfigError, RunConfig
from reward_service.actor import RewardWorker

logger = logging.getLogger(__name__)

PACKAGES = ("records", "tasks", "rollout", "learner", "reward_service", "orchestrator")
ADDRESS_TIMEOUT_S = 10.0
MANY_CALLS = 10_000
"""At once, to an actor whose calls wait for each other inside: the window, not Ray, says how many there are."""


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
        if config.device == "cpu":
            _check_cores(config)
        os.environ.pop("RAY_ADDRESS", None)  # an empty one means a default cluster to Ray
        _lock_out_others()
        os.environ.setdefault("RAY_metrics_report_interval_ms", "2000")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # for a dashboard, and there is none
        num_cpus = max(math.ceil(wanted(config)["CPU"]), os.cpu_count() or 1)
        num_gpus = 0 if config.device == "cpu" else None  # those that there are
        ray.init(address="local", num_cpus=num_cpus, num_gpus=num_gpus, include_dashboard=False, log_to_driver=False)
        logger.info("started a local Ray with %d logical CPUs", num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _check_same_code() -> None:
    """Ray's workers look for modules in the directory that the run was started in before they look elsewhere."""
    here = str(Path.cwd())
    for package in PACKAGES:
        there, ours = PathFinder.find_spec(package, [here]), find_spec(package)
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
    config: RunConfig, out: Path, checkpoints: Checkpoints | None = None
) -> tuple[RayRollouts, RayScorer, RayLearner]:
    """Place all workers and wait until they are ready.

    The learner goes on from the newest whole one of *checkpoints* and writes to *out*, an absolute path; the rollout
    workers serve the model that the run began with. Raises ConfigError if the cluster is too small for them, or no
    checkpoint is whole.
    """
    model = str(config.model.resolve())
    scorers = [place.actor(RewardWorker, max_concurrency=MANY_CALLS) for place in await place_reward_workers(config)]
    rewards = config.reward_service
    scoring = (config.task, rewards.rule, rewards.options, rewards.concurrent_samples)
    scorer = RayScorer([worker.remote(*scoring) for worker in scorers], rewards.timeout_s)
    ranks = await place_learner(config)  # before others take a part of the node that would hold them all
    workers = [await start_rollout_worker(config, scorer, index) for index in range(config.rollout.workers)]
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
        device=config.device,
        checkpoint_timeout_s=config.checkpoint.timeout_s,
    )
    learner = RayLearner(
        [place.actor(LearnerActor).remote(config.learner, job, rank, len(ranks)) for rank, place in enumerate(ranks)],
        config.learner,
        config.checkpoint.timeout_s,
    )
    await learner.start(config.start_timeout_s, checkpoints)  # first: without a whole checkpoint no engine is needed
    await rollouts.start(config.start_timeout_s)
    await scorer.start(config.start_timeout_s)
    return rollouts, scorer, learner


async def start_rollout_worker(config: RunConfig, scorer: RayScorer, index: int) -> Any:
    """The actor number *index*, which is not ready yet. Raises ConfigError if there is no room for it."""
    place = await place_rollout_worker(config, index)
    actor = place.actor(RolloutActor, max_concurrency=MANY_CALLS)
    return actor.remote(config.rollout, str(config.model.resolve()), f"rollout-{index}", scorer, config.device)


def _check_cores(config: RunConfig) -> None:
    """A local Ray would start any number of workers on the same cores, which then all miss their deadlines."""
    cores = os.cpu_count() or 1
    for key, count in {"rollout.workers": config.rollout.workers, "learner.ranks": config.learner.ranks}.items():
        if count > cores:
            raise ConfigError(
                f"{key} = {count}: this machine has {cores} cores, and each takes one; lower it, or use a cluster "
                "(RAY_ADDRESS)"
            )
