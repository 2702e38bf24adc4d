"""Where an actor runs, what it has said there, and how it is ended there if it hangs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.calls import WorkerTimeout, within

_MARKS = (":job_id:", ":actor_name:", ":task_name:")
SHOWN_LINES = 12
ASKING_S = 20.0
STACKS_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """Where an actor runs, its process, and the files that it writes what it says to."""

    node_id: str
    address: str
    pid: int
    logs: tuple[str, ...]


class OnNode:
    """What an actor says of itself."""

    def __repr__(self) -> str:
        """On Ray's pages, and where Ray tells of an error. The pages have what it was at first: it must not change."""
        return f"{ray.get_runtime_context().get_actor_name()}: {self.job()}"

    def job(self) -> str:
        """What it is there for, in a few words."""
        return type(self).__name__

    def whereabouts(self) -> Whereabouts:
        return Whereabouts(
            node_id=ray.get_runtime_context().get_node_id(),
            address=get_node_ip_address(),
            pid=os.getpid(),
            logs=tuple(_own_logs()),
        )


async def last_words(place: Whereabouts) -> str:
    """The last lines of an actor's logs, under the path of each; the actor may be dead."""
    said = []
    for path in place.logs:
        try:
            lines = await _there(place, f"reading of {path}", last_lines, path, SHOWN_LINES)
        except (RayError, WorkerTimeout) as error:
            lines = [f"(cannot be read: {type(error).__name__})"]
        if lines:
            said.append(f"\nthe last lines of {path} on {place.address}:\n" + "\n".join(f"  {line}" for line in lines))
    return "".join(said)


async def end_there(place: Whereabouts) -> str:
    """End an actor that hangs, with all that it has started; returns the stacks of those processes.

    Raises RayError or WorkerTimeout where its node is not there any more.
    """
    return await _there(place, f"ending of process {place.pid} on {place.address}", end_processes, place.pid)


async def _there(place: Whereabouts, what: str, do: Callable[..., Any], *args: Any) -> Any:
    there = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
    return await within(ASKING_S, what, ray.remote(num_cpus=0, scheduling_strategy=there)(do).remote(*args))


def end_processes(pid: int) -> str:
    """Kill process *pid* of this machine and all that it started; returns their stacks, the process's own first."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return f"process {pid} has ended already\n"
    family = [process, *process.children(recursive=True)]
    stacks = "\n".join(map(_stacks, family))
    for member in family:
        if member.is_running():
            member.kill()
    return stacks


def _stacks(process: psutil.Process) -> str:
    spy = Path(sys.executable).with_name("py-spy")
    command = [str(spy if spy.exists() else shutil.which("py-spy")), "dump", "--nonblocking", "--pid", str(process.pid)]
    try:
        dumped = subprocess.run(command, capture_output=True, text=True, timeout=STACKS_S, check=False)
        said = dumped.stdout + dumped.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        said = f"(py-spy could not be asked: {error})\n"
    return f"{process.pid}: {process.status()}\n{said}"


def _own_logs() -> list[str]:
    """The files that this process writes what it says to, if they are files."""
    paths = [os.readlink(f"/proc/self/fd/{number}") for number in (2, 1)]
    return [path for path in paths if os.path.isfile(path)]


def last_lines(path: str, count: int) -> list[str]:
    """Of a log, without those that are empty or Ray's own marks."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 200 * count))
        text = file.read().decode(errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith(_MARKS)][-count:]
