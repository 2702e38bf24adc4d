"""A process that asks a cluster at the address given for more than it has, and gives it back.

python -m tests.orchestrator.cluster.grow_and_shrink HOST:PORT FOLDER
"""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster import placement
from orchestrator.cluster.crew import Crew
from orchestrator.cluster.placement import give_back, rollout_bundle
from orchestrator.config import load_run_config

LONGEST_S = 90.0


def main(address: str, folder: Path) -> None:
    until(lambda: connects(address))
    placement.PLACED_WITHIN_S = 1.0
    config = load_run_config(Path("deploy/runs/tiny_cpu.toml"), ["rollout.workers=3"])
    told: list[str] = []

    def tell(event: str, **facts: Any) -> None:
        told.append(f"{event} {facts['worker']}")

    learner_placed = asyncio.Event()
    learner_placed.set()
    crew = Crew(config, folder, tell, learner_placed)

    async def place_all() -> list[placement.Place]:
        first = await crew.place("rollout-0", rollout_bundle(config), apart=False)
        more = (crew.place(f"rollout-{number}", rollout_bundle(config), apart=False) for number in (1, 2))
        return [first, *await asyncio.wait_for(asyncio.gather(*more), LONGEST_S)]

    places = asyncio.run(place_all())
    assert sorted(told) == ["waiting rollout-1", "waiting rollout-2"], told
    assert nodes() == 3, ray.nodes()
    give_back(places[1:])
    until(lambda: nodes() == 1)
    ray.shutdown()


def connects(address: str) -> bool:
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError):
        return False
    return True


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not holds():
        assert time.monotonic() < deadline, ray.nodes()
        time.sleep(0.5)


def nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
