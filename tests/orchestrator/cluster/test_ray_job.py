"""The same command as the entrypoint of a Ray job: a head is started, the job submitted, its logs and metrics read."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return page.read().decode()
    except OSError:
        return ""


@pytest.fixture
def head(tmp_path):
    """A Ray head with a dashboard, of this test alone: its environment and the addresses of dashboard and metrics."""
    gcs, dashboard, metrics, agent = free_port(), free_port(), free_port(), free_port()
    env = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_metrics_report_interval_ms": "1000",
    }
    command = [BIN / "ray", "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}"]
    command += [f"--metrics-export-port={metrics}", "--num-cpus=4", "--disable-usage-stats"]
    # The agent takes the jobs. Its usual port may belong to that of another test's Ray.
    command += [f"--dashboard-agent-listen-port={agent}"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        wait_for(lambda: read(f"http://127.0.0.1:{dashboard}/api/version"), 90, "the dashboard")
        yield env, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics"
    finally:
        stop_all(process.pid)


def stop_all(pid: int) -> None:
    """End a process and all its descendants; `ray stop` would end every Ray process on the machine."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)


def wait_for(condition, seconds: float, what: str):
    """Poll another process, which no event of ours can announce."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come within {seconds} s")


def test_a_submitted_job_trains_and_shows_its_metrics(head, tmp_path):
    env, dashboard, metrics = head
    settings = ["loop.steps=4", "loop.groups_per_step=4", "rollout.samples_per_prompt=4", "rollout.kv_cache_mib=64"]
    settings += ["data.train=12", "data.test=6", "data.spp=1", "evaluation.max_samples=6", f"data.path={tmp_path}/data"]
    entrypoint = ["star-r1", "train", "deploy/runs/tiny_cpu.toml", "--out", f"{tmp_path}/run"]
    for setting in settings:
        entrypoint += ["--set", setting]
    submit = [BIN / "ray", "job", "submit", "--address", dashboard, "--working-dir", ".", "--", *entrypoint]
    with (tmp_path / "job.log").open("w") as log:
        job = subprocess.Popen(submit, env=env, stdout=log, stderr=subprocess.STDOUT)
    logs = tmp_path / "job.log"

    def rewards() -> list[str]:
        assert job.poll() in (None, 0), logs.read_text()
        return re.findall(r"^ray_star_r1_reward\{.*\} (\S+)", read(metrics), flags=re.MULTILINE)

    assert all(-20 < float(value) < 20 for value in wait_for(rewards, 240, "star_r1_reward on the metrics port"))
    assert "ray_star_r1_staleness_max{" in read(metrics)
    (name,) = set(re.findall(r"raysubmit_\w+", logs.read_text()))
    asked = subprocess.run(
        [BIN / "star-r1", "scale", name, "--scorers", "2", "--dry-run"],
        env=env | {"RAY_ADDRESS": dashboard},
        capture_output=True,
        text=True,
    )
    assert "would change scorers: 1 -> 2" in asked.stdout, asked.stderr
    assert job.wait(240) == 0, logs.read_text()
    text = logs.read_text()
    assert "using the Ray cluster at" in text
    assert "asks for no token: whoever reaches its ports can run code there as you" in text
    assert "step   4/4" in text
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
