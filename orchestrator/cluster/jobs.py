"""Runs that are Ray jobs: submitted, found, followed, and told what to do, through the head's dashboard port alone.

What a run is told goes by files in its directory (`run.control`), which only the cluster sees. So a command that is
given elsewhere is given again there, as a small job on the driver's own node: that needs no second channel, no actor
that must be kept alive, and no right beyond that to submit. Its log and its exit status are those of the command.
"""

import asyncio
import json
import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from orchestrator.config import ConfigError

RELEASE, COMMAND, NAME = "star_r1_release", "star_r1_command", "job_name"
"""What a job's metadata say: the release of star-r1 that submitted a run, or which command it is; and its name on the
dashboard."""
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
SET_BY_RAY = "RAY_JOB_CONFIG_JSON_ENV_VAR"
ASK_EVERY_S = 0.3
KEPT_S = 30.0
"""Ray looks after a job for a while after its end, and would take one that is deleted then for lost."""
CHATTY = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")
"""Of Ray's modules, those that tell a user of their own doings."""
_SAID_BY_RAY = re.compile(r"^(\S+ \S+\tINFO job_manager\.py:\d+ -- .*|Running entrypoint for job .*)\n", re.MULTILINE)
_TRAINS = re.compile(r"(star-r1|orchestrator\.commands\.cli) (train|sft)\b")


def own_job() -> str | None:
    """The submission id of the Ray job that this process is the driver of."""
    said = json.loads(os.environ.get(SET_BY_RAY, "{}"))
    return said.get("metadata", {}).get("job_submission_id")


@dataclass(frozen=True, slots=True)
class Job:
    """One job of the cluster, as its head tells of it."""

    id: str
    status: str
    message: str
    exit_status: int | None
    node: str | None
    entrypoint: str
    metadata: Mapping[str, str]
    began_s: float
    ended_s: float | None

    @property
    def is_over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def is_run(self) -> bool:
        return RELEASE in self.metadata or _TRAINS.search(self.entrypoint) is not None


class Cluster:
    """The jobs of the cluster whose head answers at *address*. Every method raises ConfigError where it does not."""

    def __init__(self, address: str) -> None:
        self.address = address
        for chatty in CHATTY:
            logging.getLogger(f"ray.{chatty}").setLevel(logging.WARNING)
        with self._asked(), _alone():
            self._client = JobSubmissionClient(address)

    def jobs(self) -> list[Job]:
        """All that were submitted, the oldest first."""
        with self._asked():
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return [_job(job) for job in sorted(found, key=lambda job: job.start_time or 0)]

    def job(self, name: str) -> Job:
        for job in self.jobs():
            if job.id == name:
                return job
        raise ConfigError(f"{name}: no job of this name at {self.address}; {_choice(self._runs())}")

    def only_run(self) -> Job:
        """The one that goes on."""
        runs = self._runs()
        if len(runs) != 1:
            raise ConfigError(f"{len(runs)} runs go on at {self.address}; {_choice(runs)}")
        return runs[0]

    def _runs(self) -> list[Job]:
        return [job for job in self.jobs() if job.is_run and not job.is_over]

    def submit(self, entrypoint: str, name: str, metadata: dict[str, str], **options: Any) -> None:
        with self._asked():
            self._client.submit_job(entrypoint=entrypoint, submission_id=name, metadata=metadata, **options)

    def log(self, name: str) -> str:
        """All that the job has said, without what Ray says itself."""
        with self._asked():
            return _SAID_BY_RAY.sub("", self._client.get_job_logs(name))

    def follow(self, name: str, say: Callable[[str], None]) -> Job:
        """The job, when it has ended; *say* is given what it says meanwhile."""
        with self._asked():
            asyncio.run(self._tell(name, say))
        while not (job := self.job(name)).is_over:
            time.sleep(ASK_EVERY_S)
        return job

    async def _tell(self, name: str, say: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(name):
            say(_SAID_BY_RAY.sub("", text))

    def _watch(self, name: str, say: Callable[[str], None]) -> Job:
        """`follow`, of a job that says little and ends soon: Ray's own way takes seconds to notice that it has."""
        said = ""
        while True:
            job = self.job(name)
            text = self.log(name)
            say(text.removeprefix(said))
            said = text
            if job.is_over:
                return job
            time.sleep(ASK_EVERY_S)

    def do_there(self, job: Job, command: str, what: str, say: Callable[[str], None]) -> int:
        """Have *command* done on the node of *job*'s driver; *say* is given what it says. Returns its exit status.

        Interrupted, it is stopped there as well. The list of jobs keeps the last commands, and no others.
        """
        name = f"{what}-{job.id}-{secrets.token_hex(3)}"
        there = {"entrypoint_label_selector": {"ray.io/node-id": job.node}} if job.node else {}
        self.submit(command, name, {NAME: f"star-r1 {what}", COMMAND: what}, **there)
        try:
            done = self._watch(name, say)
        except BaseException:
            with self._asked():
                self._client.stop_job(name)
            raise
        self._forget_commands(done.began_s - KEPT_S)
        if done.exit_status is None:
            raise ConfigError(f"{job.id}: the cluster could not do star-r1 {what}: {done.message}")
        return done.exit_status

    def _forget_commands(self, ended_before: float) -> None:
        """By the clock of the head, which says when jobs begin and end."""
        for job in self.jobs():
            if COMMAND in job.metadata and job.ended_s is not None and job.ended_s < ended_before:
                with self._asked():
                    self._client.delete_job(job.id)

    def total(self) -> tuple[dict[str, float], bool]:
        """What all nodes have, and whether the cluster may get more of them: who does not say that it cannot, may."""
        nodes, status = (self._get(path)["data"] for path in ("/nodes?view=summary", "/api/cluster_status"))
        found: dict[str, float] = {}
        for node in nodes["summary"]:
            for kind, count in node["raylet"].get("resourcesTotal", {}).items():
                if node["raylet"].get("state") == "ALIVE":
                    found[kind] = found.get(kind, 0.0) + count
        types = ((status["clusterStatus"] or {}).get("autoscalerReport") or {}).get("nodeTypeMapping") or {}
        fixed = types and all(kind.startswith("node_") for kind in types.values())  # Ray's names without an autoscaler
        return found, not fixed

    def _get(self, path: str) -> Any:
        with self._asked():
            answer = self._client._do_request("GET", path)  # Ray has no public call for it
            answer.raise_for_status()
        return answer.json()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise ConfigError(
                f"--address {self.address}: the cluster asks for a token, and takes none that is here; set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to that of the cluster"
            ) from error
        except OSError as error:  # what requests raises, too
            raise ConfigError(
                f"--address {self.address}: no Ray dashboard answers there; give the head's, for example "
                "http://HEAD:8265, and forward the port where it is not reached (kubectl port-forward, ssh -L)"
            ) from error
        except RuntimeError as error:
            raise ConfigError(f"--address {self.address}: the cluster says: {str(error).splitlines()[0]}") from error


def connect(address: str | None) -> Cluster:
    """The cluster at *address*, or where the environment says. Raises ConfigError."""
    said = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if said is None:
        raise ConfigError("where is the cluster? Give --address http://HEAD:8265, that of its Ray dashboard")
    if not re.match(r"https?://", said):
        raise ConfigError(f"--address {said}: is not that of a Ray dashboard, for example http://HEAD:8265")
    return Cluster(said.rstrip("/"))


@contextmanager
def _alone() -> Iterator[None]:
    """Ray would take the address of the environment before the one that it is given."""
    known = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(known)


def folder_of(cluster: Cluster, job: Job) -> Path | None:
    """The run directory of *job*, as the cluster sees it; None while it has not said."""
    found = re.findall(r"^run directory: (.+)$", cluster.log(job.id), re.MULTILINE)
    return Path(found[-1].strip()) if found else None


def command_line(*words: object) -> str:
    return shlex.join(["star-r1", *map(str, words)])


def _job(found: Any) -> Job:
    return Job(
        id=found.submission_id,
        status=str(found.status.value),
        message=(found.message or "").strip(),
        exit_status=found.driver_exit_code,
        node=found.driver_node_id,
        entrypoint=found.entrypoint,
        metadata=found.metadata or {},
        began_s=(found.start_time or 0) / 1000,
        ended_s=None if found.end_time is None else found.end_time / 1000,
    )


def _choice(runs: list[Job]) -> str:
    if not runs:
        return "no run goes on there (star-r1 submit begins one)"
    return "name one of those that go on: " + ", ".join(job.id for job in runs)
