"""Ray: the cluster that is up, or a local one, and the actors placed on it.

Inside a Ray job (or with RAY_ADDRESS set) the run uses that cluster; otherwise it starts one on this machine and takes
it down at the end. Workers are plain classes; only here do they become actors.
"""

import asyncio
import logging
import math
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from learner.config import LearnerJob
from orchestrator.cluster.crew import Crew, Tell, supervise
from orchestrator.cluster.learner import LEARNER, History, LearnerCrew, LearnerHand, Nothing, RayLearner
from orchestrator.cluster.placement import wanted
from orchestrator.cluster.rollouts import RayRollouts, RolloutCrew, RolloutHand
from orchestrator.cluster.scoring import RayScorers
from orchestrator.config import ConfigError, RunConfig
from orchestrator.supervision.supervisor import Supervisor

logger = logging.getLogger(__name__)

PACKAGES = ("records", "tasks", "rollout", "learner", "reward_service", "orchestrator")
ADDRESS_TIMEOUT_S = 10.0
REFUSED_WITHIN_S = 10.0


@contextmanager
def connected(config: RunConfig, job_name: str = "star-r1") -> Iterator[None]:
    """A cluster for the run: the one of RAY_ADDRESS, where it is the job *job_name*, or a local one with room for its
    workers and more.

    Raises ConfigError if there is no cluster at RAY_ADDRESS, or if workers would not run the code that runs here.
    """
    _check_same_code()
    if address := os.environ.get("RAY_ADDRESS"):
        _check_address(address)
        ray.init(log_to_driver=False, job_config=JobConfig(metadata={"job_name": job_name}))
        logger.info("using the Ray cluster at %s", address)
        asking = (ray.get_runtime_context().gcs_address,)
        threading.Thread(target=_say_if_open, args=asking, daemon=True).start()  # a closed one takes seconds to say so
    else:
        if config.device == "cpu":
            _check_cores(config)
        os.environ.pop("RAY_ADDRESS", None)  # an empty one means a default cluster to Ray
        _lock_out_others()
        os.environ.setdefault("RAY_metrics_report_interval_ms", "2000")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # for a dashboard, and there is none
        cores = os.cpu_count() or 1
        num_cpus = max(math.ceil(wanted(config)["CPU"]), cores) + cores  # room for workers that come later
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
    """Who can talk to Ray's ports, though only from this machine, can run code: nobody can without this token.

    Ray asks for one in a new cluster, unless the user has set RAY_AUTH_MODE. It goes to the workers with the
    environment and to nobody else; without it here, Ray would use one that lies in the user's home.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it would advise how to open the door


def _say_if_open(address: str) -> None:
    """Whether the cluster asks for a token is seen by asking without one."""
    if is_open(address):
        logger.warning(
            "the Ray cluster at %s asks for no token: whoever reaches its ports can run code there as you; start it "
            "with RAY_AUTH_MODE=token (docs/security.md)",
            address,
        )


def is_open(address: str) -> bool:
    """Whether the Ray at *address* lets in who has no token."""
    asks = f"from ray._raylet import GcsClient; GcsClient(address={address!r}).internal_kv_keys(b'', None)"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    env |= {"RAY_AUTH_MODE": "disabled"}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", asks], env=env, capture_output=True, timeout=REFUSED_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:  # Ray tries again and again
        return False
    return asked.returncode == 0


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
    config: RunConfig, out: Path, history: History | None = None, tell: Tell | None = None
) -> tuple[RayRollouts, RayScorers, RayLearner]:
    """Place all workers, wait until those that have room are ready, and watch them from then on (`stop_roles`).

    The learner goes on from what *history* has, and writes to *out*, an absolute path; the rollout workers serve the
    model that the run began with. *tell* is told what happens to workers. Raises ConfigError if the cluster is too
    small for one of each kind, or no checkpoint is whole; StartFailed; FleetLost.
    """
    common: dict[str, Any] = {
        "config": config,
        "folder": out,
        "tell": tell or _say,
        "learner_placed": asyncio.Event(),
    }
    scorers = RayScorers(Crew(**common))
    learner_crew = LearnerCrew(make_job(config, out), history or Nothing(), **common)
    rollout_crew = RolloutCrew(scorers, **common)
    learner = RayLearner(supervise(LEARNER, 1, learner_crew, LearnerHand), learner_crew)
    rollouts = RayRollouts(supervise("rollout", config.rollout.workers, rollout_crew, RolloutHand), rollout_crew)
    learner_crew.passed = rollouts.passed
    try:
        learner.supervisor.begin()  # before others take a part of the node that would hold all its ranks
        await learner.supervisor.until(learner.supervisor.all_placed)
        scorers.supervisor.begin()
        rollouts.supervisor.begin()
        await scorers.supervisor.until(lambda: scorers.crew.knows_room(config.reward_service.workers))
        await rollouts.supervisor.until(lambda: rollout_crew.knows_room(config.rollout.workers))
        await learner.ready()  # first: without a whole checkpoint no engine is needed
        rollout_crew.may_start.set()
        for supervisor in (scorers.supervisor, rollouts.supervisor):
            await supervisor.until(supervisor.all_ready)
    except BaseException:
        await stop_watching(rollouts, scorers, learner)
        raise
    return rollouts, scorers, learner


async def stop_watching(rollouts: RayRollouts, scorers: RayScorers, learner: RayLearner) -> None:
    """From now on nobody is replaced."""
    for supervisor in _supervisors(rollouts, scorers, learner):
        await supervisor.end()


@asynccontextmanager
async def watched(rollouts: RayRollouts, scorers: RayScorers, learner: RayLearner) -> AsyncIterator[None]:
    """What is done meanwhile ends when workers of one kind can be kept no longer, whoever waits for them."""
    async with asyncio.TaskGroup() as lost:
        waits = [
            lost.create_task(supervisor.until(lambda: False)) for supervisor in _supervisors(rollouts, scorers, learner)
        ]
        try:
            yield
        finally:
            for wait in waits:
                wait.cancel()


def _supervisors(rollouts: RayRollouts, scorers: RayScorers, learner: RayLearner) -> list[Supervisor[Any]]:
    return [rollouts.supervisor, scorers.supervisor, learner.supervisor]


def make_job(config: RunConfig, out: Path) -> LearnerJob:
    """What the ranks are told of the run, which writes to *out*."""
    model = str(config.model.resolve())
    return LearnerJob(
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


def _say(event: str, **facts: Any) -> None:
    logger.info("%s: %s", event, ", ".join(f"{name} {value}" for name, value in facts.items()))


def _check_cores(config: RunConfig) -> None:
    """A local Ray would start any number of workers on the same cores, which then all miss their deadlines."""
    cores = os.cpu_count() or 1
    counts = {"rollout.workers": config.rollout.workers, "learner.ranks": config.learner.ranks}
    if config.rollout.autoscale is not None:
        counts["rollout.autoscale.max"] = config.rollout.autoscale.max
    for key, count in counts.items():
        if count > cores:
            raise ConfigError(
                f"{key} = {count}: this machine has {cores} cores, and each takes one; lower it, or use a cluster "
                "(RAY_ADDRESS)"
            )
