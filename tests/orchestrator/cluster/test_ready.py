"""What is said when a worker does not start: by real Ray actors that fail in each way."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.cluster.machine import UnfitMachine
from orchestrator.cluster.on_node import SHOWN_LINES, OnNode
from orchestrator.cluster.ready import Starting
from orchestrator.config import ConfigError, StartFailed

pytestmark = pytest.mark.slow


class Starter(OnNode):
    def __init__(self, end: str) -> None:
        self._end = end
        self._others = 0

    def check_machine(self, workers_here: int) -> None:
        self._others = workers_here
        if self._end == "unfit":
            raise UnfitMachine("it has no shared memory; give it some")

    def ready(self) -> int:
        sys.stderr.writelines(f"line {number}\n" for number in range(100))
        sys.stderr.write("CUDA driver version is insufficient\n")
        sys.stderr.flush()
        if self._end == "raise":
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        if self._end == "die":
            os._exit(1)
        if self._end == "hang":
            signal.pause()
        return self._others


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


async def start(*ends: str, timeout_s: float = 60.0) -> list[Any]:
    actor = ray.remote(num_cpus=0)(Starter)
    names = [f"rollout worker {number}" for number in range(len(ends))]
    starting = Starting([actor.remote(end) for end in ends], names, 60.0)
    await starting.check_machines()
    starting._timeout_s = timeout_s  # processes have started, which takes as long as it takes
    return await starting.call("ready")


def test_each_machine_is_asked_whether_it_is_fit_for_all_workers_on_it():
    assert asyncio.run(start("well", "well")) == [2, 2]


@pytest.mark.parametrize(
    ("end", "timeout_s", "cause"),
    [
        ("raise", 60.0, "RuntimeError: Engine core initialization failed"),
        ("die", 60.0, "ActorDiedError"),
        ("hang", 2.0, "WorkerTimeout: start of rollout worker 1 did not answer within 2 s"),
    ],
)
def test_a_worker_that_does_not_start_is_named_with_its_last_lines_and_the_path_of_all(end, timeout_s, cause):
    with pytest.raises(StartFailed) as failed:
        asyncio.run(start("well", end, timeout_s=timeout_s))
    first, *said = str(failed.value).splitlines()
    assert first.startswith("rollout worker 1 on ")
    assert cause in first + "".join(said)
    (place,) = [line for line in said if line.startswith("the last lines of ")]
    shown = said[said.index(place) + 1 :]
    assert shown[-1] == "  CUDA driver version is insufficient"
    assert len(shown) == SHOWN_LINES
    path = place.removeprefix("the last lines of ").partition(" on ")[0]
    assert "line 0\n" in Path(path).read_text()


def test_a_machine_that_is_not_fit_is_the_user_s_to_mend():
    with pytest.raises(ConfigError, match=r"^rollout worker 1 on [\d.]+: it has no shared memory; give it some$"):
        asyncio.run(start("well", "unfit"))
