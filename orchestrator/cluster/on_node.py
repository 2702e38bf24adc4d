"""Where an actor runs, and what it has said there."""

import os
from dataclasses import dataclass

import ray
from ray.util import get_node_ip_address

_MARKS = (":job_id:", ":actor_name:", ":task_name:")


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """Where an actor runs, and the files that it writes what it says to."""

    node_id: str
    address: str
    logs: tuple[str, ...]


class OnNode:
    """What an actor says of itself."""

    def whereabouts(self) -> Whereabouts:
        return Whereabouts(
            node_id=ray.get_runtime_context().get_node_id(), address=get_node_ip_address(), logs=tuple(_own_logs())
        )


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
