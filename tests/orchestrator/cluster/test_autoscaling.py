"""On a cluster that can grow: who waits for room makes it grow, and what is given back lets it shrink."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util import get_node_ip_address

pytestmark = pytest.mark.slow
HEAD = "ray.head.default"
"""As the provider calls it."""
OPEN = {"RAY_AUTH_MODE": "disabled"}
"""Of this cluster, for a minute: with a token its fake nodes did not come and go as asked."""


class FakeNodes:
    """Ray's autoscaler with its provider of fake nodes. Its own `AutoscalingCluster` needs a file that its wheels lack,
    and ends every Ray on the machine, that of other tests too.
    """

    def __init__(self, more: int) -> None:
        one = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0}
        self._config: dict[str, Any] = {
            "cluster_name": "fake",
            "max_workers": more,
            "provider": {
                "type": "fake_multinode",
                "disable_node_updaters": True,
                "use_node_id_as_ip": True,
                "launch_multiple": True,
            },
            "available_node_types": {HEAD: one | {"max_workers": 0}, "more": one | {"max_workers": more}},
            "head_node_type": HEAD,
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
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._config["provider"]["gcs_address"] = f"{get_node_ip_address()}:{port}"
        config = folder / "cluster.json"
        config.write_text(json.dumps(self._config))
        command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=1", "--include-dashboard=false"]
        fake = {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            **OPEN,
        }
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


def test_a_cluster_grows_while_workers_wait_for_room_and_shrinks_when_they_have_gone(tmp_path: Path):
    """A head of one CPU, and up to two more nodes of one, that are there while they are asked for."""
    cluster = FakeNodes(more=2)
    address = cluster.run(tmp_path)
    try:
        command = [sys.executable, "-m", "tests.orchestrator.cluster.grow_and_shrink", address, str(tmp_path)]
        ended = subprocess.run(command, env=os.environ | OPEN, capture_output=True, text=True, timeout=240)
    finally:
        cluster.end()
    assert ended.returncode == 0, ended.stdout + ended.stderr
