"""On a cluster that can grow: who waits for room makes it grow, and what is given back lets it shrink."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator.cluster import placement
from orchestrator.cluster.crew import Crew
from orchestrator.cluster.placement import give_back, rollout_bundle
from orchestrator.config import load_run_config

pytestmark = pytest.mark.slow
LONGEST_S = 90.0


class FakeNodes:
    """Ray's autoscaler with its provider of fake nodes. Its own `AutoscalingCluster` needs a file that its wheels lack,
    and ends every Ray on the machine, that of other tests too.
    """

    def __init__(self, more: int) -> None:
        one = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0}
        self._config = {
            "cluster_name": "fake",
            "max_workers": more,
            "provider": {"type": "fake_multinode"},
            "available_node_types": {"head": one | {"max_workers": 0}, "more": one | {"max_workers": more}},
            "head_node_type": "head",
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.05,
            "auth": {},
            "setup_commands": [],
            "initialization_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
        }

    def run(self, folder: Path) -> str:
        """Its address."""
        config = folder / "cluster.json"
        config.write_text(json.dumps(self._config))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=1", "--include-dashboard=false"]
        fake = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        with (folder / "cluster.log").open("w") as log:
            self.process = subprocess.Popen(
                [*command, f"--autoscaling-config={config}"],
                env=os.environ | fake | {"PATH": f"{Path(ray.__file__).parents[4] / 'bin'}:{os.environ['PATH']}"},
                stdout=log,
                stderr=log,
            )
        return f"127.0.0.1:{port}"

    def end(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        self.process.wait(30)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[None]:
    """A head of one CPU, and up to two more nodes of one, that are there while they are asked for."""
    it = FakeNodes(more=2)
    address = it.run(tmp_path)
    try:
        until(lambda: connects(address))
        yield
    finally:
        ray.shutdown()
        it.end()


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


def test_a_cluster_grows_while_workers_wait_for_room_and_shrinks_when_they_have_gone(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(placement, "PLACED_WITHIN_S", 1.0)
    config = load_run_config(Path("deploy/runs/tiny_cpu.toml"), ["rollout.workers=3"])
    told: list[str] = []
    crew = Crew(config, tmp_path, lambda event, **facts: told.append(f"{event} {facts['worker']}"))

    async def place_all() -> list[placement.Place]:
        first = await crew.place("rollout-0", rollout_bundle(config), apart=False)
        more = (crew.place(f"rollout-{number}", rollout_bundle(config), apart=False) for number in (1, 2))
        return [first, *await asyncio.wait_for(asyncio.gather(*more), LONGEST_S)]

    places = asyncio.run(place_all())
    assert sorted(told) == ["waiting rollout-1", "waiting rollout-2"]
    assert nodes() == 3
    give_back(places[1:])
    until(lambda: nodes() == 1)
