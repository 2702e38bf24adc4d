"""Who gets into a local run's Ray, and what is said before workers are waited for that cannot come."""

import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import orchestrator.cluster.start
from orchestrator.cluster.start import connected, is_open
from orchestrator.config import ConfigError, load_run_config

TINY = Path("deploy/runs/tiny_cpu.toml")

LOCAL_RUN = """
from orchestrator.commands.cli import set_up_ray
set_up_ray()
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import ray
from orchestrator.cluster.start import connected
from orchestrator.config import load_run_config

@ray.remote
def work():
    return "worked"

with connected(load_run_config(Path("deploy/runs/tiny_cpu.toml"))):
    token = os.environ.get("RAY_AUTH_TOKEN")
    print(ray.get(work.remote()), ray.get_runtime_context().gcs_address, token, flush=True)
    sys.stdin.read()
"""
ATTACK = """
import os, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote
def intrude():
    return os.getppid()

print("ran in", ray.get(intrude.remote()))
"""


@pytest.mark.slow
def test_nobody_without_its_token_runs_code_in_a_local_run(tmp_path):
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    run = subprocess.Popen(
        [sys.executable, "-c", LOCAL_RUN], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    with run:
        worked, address, token = run.stdout.readline().split()
        assert worked == "worked"
        assert address.startswith("127.0.0.1:")
        pids = {run.pid, *(child.pid for child in psutil.Process(run.pid).children(recursive=True))}
        heard = {it.laddr.ip for it in psutil.net_connections("tcp") if it.status == "LISTEN" and it.pid in pids}
        assert heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

        def attack(mode: dict[str, str]) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", ATTACK, address]
            # Or Ray would look for it at this machine's outer address, where nobody listens.
            tries = {"RAY_gcs_server_port_wait_time_s": "3"}
            stranger = env | {"HOME": str(tmp_path), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} | tries | mode
            return subprocess.run(command, env=stranger, capture_output=True, text=True, timeout=120)

        assert not is_open(address)
        by_token = {"RAY_AUTH_MODE": "token"}
        modes = [{}, {"RAY_AUTH_MODE": "disabled"}, by_token | {"RAY_AUTH_TOKEN": "0" * 64}]
        with ThreadPoolExecutor(4) as at_once:  # each waits for most of its time
            *attacked, let_in = at_once.map(attack, [*modes, by_token | {"RAY_AUTH_TOKEN": token}])
        for stranger in attacked:
            assert "ran in" not in stranger.stdout
            assert stranger.returncode != 0
        assert "ran in" in let_in.stdout, let_in.stderr  # so the attack is one that works
        run.communicate("")
    assert run.returncode == 0


@pytest.mark.parametrize("name", ["learner/__init__.py", "tasks.py"])
def test_other_code_of_the_same_name_in_the_directory_of_the_run_is_said_at_once(monkeypatch, tmp_path, name):
    config = load_run_config(TINY)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    (tmp_path / "rollout").mkdir()  # no package: workers pass over it
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"{file}: workers would import this, and the command runs "):
        connected(config).__enter__()


@pytest.mark.parametrize("key", ["rollout.workers", "learner.ranks"])
def test_more_workers_than_cores_are_refused_on_a_local_ray_alone(monkeypatch, key):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    with pytest.raises(ConfigError, match=f"{key} = 4: this machine has 3 cores, and each takes one; lower it, or"):
        connected(load_run_config(TINY, [f"{key}=4"])).__enter__()
    orchestrator.cluster.start._check_cores(load_run_config(TINY, [f"{key}=3"]))


@pytest.mark.parametrize("address", ["foo", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_an_address_without_a_ray_is_said_at_once(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=re.escape(f"RAY_ADDRESS={address}: ")):
        connected(load_run_config(TINY)).__enter__()


def test_a_port_that_nobody_listens_on_is_said_at_once(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match=r"no Ray answers there .* start a cluster there, or unset RAY_ADDRESS"):
            connected(load_run_config(TINY)).__enter__()
