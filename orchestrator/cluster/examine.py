"""What a maintainer asks of the machines that a run uses: room, memory, stacks and last lines of its processes."""

import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.address import check_address
from orchestrator.cluster.on_node import family, last_lines, logs_of, stacks

LOG_LINES = 200
ASKING_S = 60.0
ACTORS = 1000


@dataclass(frozen=True, slots=True)
class Process:
    """One of a run, on a node by its Ray id, if it has one, or on *host*."""

    name: str
    pid: int
    node: str | None = None
    host: str | None = None


def examine_here(folder: str, processes: list[Process]) -> dict[str, str]:
    """What is found on this machine, as texts by the names of files; *processes* may have ended."""
    found = {f"machines/{socket.gethostname()}.txt": _machine(folder)}
    return found | {f"workers/{process.name}.txt": _process(process.pid) for process in processes}


def examine_cluster(folder: str, processes: list[Process]) -> dict[str, str]:
    """The same of every node of the cluster at RAY_ADDRESS that is up, and its actors. Raises ConfigError."""
    check_address(os.environ["RAY_ADDRESS"])
    ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        found = {"actors.json": json.dumps(_actors(), indent=2)}
        calls = {}
        for node in (node for node in ray.nodes() if node["Alive"]):
            there = [it for it in processes if it.node == node["NodeID"] or it.host == node["NodeManagerHostname"]]
            at = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            examine = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=at)(examine_here)
            calls[node["NodeManagerHostname"]] = examine.remote(folder, there)
        for host, call in calls.items():
            try:
                found |= ray.get(call, timeout=ASKING_S)
            except (RayError, GetTimeoutError) as error:
                found[f"machines/{host}.txt"] = f"could not be had: {type(error).__name__}: {error}\n"
        return found
    finally:
        ray.shutdown()


def _actors() -> list[dict[str, Any]]:
    from ray.util.state import list_actors

    return [dict(actor.asdict()) for actor in list_actors(limit=ACTORS, raise_on_missing_output=False)]


def _machine(folder: str) -> str:
    memory, load = psutil.virtual_memory(), os.getloadavg()
    lines = [
        f"cores {os.cpu_count()}, load {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}",
        f"memory {_gib(memory.available)} of {_gib(memory.total)} available",
    ]
    for path in ("/dev/shm", "/tmp", folder):
        try:
            usage = shutil.disk_usage(path)
            lines.append(f"{path} {_gib(usage.free)} of {_gib(usage.total)} free")
        except OSError as error:
            lines.append(f"{path} could not be asked: {error}")
    return "\n".join(lines) + "\n"


def _process(pid: int) -> str:
    said = [stacks(pid)]
    for member in family(pid)[:1]:
        used: Mapping[str, Any] = member.memory_info()._asdict()
        said.append(f"memory {_gib(used['rss'])}\n")
        for path in logs_of(pid):
            said.append(f"the last lines of {path}:\n" + "\n".join(last_lines(path, LOG_LINES)) + "\n")
    return "\n".join(said)


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
