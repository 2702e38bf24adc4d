"""Runs as Ray jobs, on a head that is started for them: one by Ray's own command, whose logs and metrics are read, and
beside it one by `star-r1 submit`, asked for all there is to ask, and stopped.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from orchestrator.commands.cli import main
from orchestrator.run import control, doctor, find
from orchestrator.run.journal import read_events

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[3]


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


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A Ray head with a dashboard, of this module alone: its environment and the addresses of dashboard and metrics."""
    gcs, dashboard, metrics, agent = free_port(), free_port(), free_port(), free_port()
    env = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),  # as an image has the packages
        "RAY_AUTH_MODE": "disabled",
        "RAY_metrics_report_interval_ms": "1000",
    }
    command = [BIN / "ray", "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}"]
    command += [f"--metrics-export-port={metrics}", "--num-cpus=6", "--disable-usage-stats"]
    # The agent takes the jobs. Its usual port may belong to that of another test's Ray.
    command += [f"--dashboard-agent-listen-port={agent}"]
    # Ray tells a job where its cluster is by a file in this folder; in the usual one another test's Ray writes its own.
    own = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets are in it
    command += [f"--temp-dir={own}"]
    with (tmp_path_factory.mktemp("head") / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        wait_for(lambda: read(f"http://127.0.0.1:{dashboard}/api/version"), 90, "the dashboard")
        yield env, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics"
    finally:
        stop_all(process.pid)
        shutil.rmtree(own, ignore_errors=True)


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


SMALL = ["loop.groups_per_step=4", "rollout.samples_per_prompt=4", "rollout.kv_cache_mib=64"]
SMALL += ["data.train=12", "data.test=6", "evaluation.max_samples=6"]
RULE = "import lengths\ndef rule(reply, gold): return {'short': lengths.short(reply)}\n"


def flags(*settings: str) -> list[str]:
    return [word for setting in [*SMALL, *settings] for word in ("--set", setting)]


@pytest.fixture(scope="module")
def session(head, data, tmp_path_factory):
    """A run that would take days, submitted from a folder with a rule of the user's own: its job, its directory.

    It is paused until somebody asks for it, and leaves the cores to others.
    """
    env, dashboard, _ = head
    folder, out = tmp_path_factory.mktemp("user"), tmp_path_factory.mktemp("cluster") / "run"
    out.mkdir()
    control.ask(out, control.Wanted(paused=True))
    shutil.copy(ROOT / "deploy/runs/tiny_cpu.toml", folder / "mine.toml")
    (folder / "my_rule.py").write_text(RULE)
    (folder / "lengths.py").write_text("def short(reply): return float(len(reply) < 100)\n")
    settings = [f"model={ROOT}/deploy/models/tiny", f"data.path={data}", "loop.steps=1000000"]
    settings += ["reward_service.rule=my_rule:rule"]
    command = [BIN / "star-r1", "submit", "mine.toml", "--address", dashboard, "--out", str(out), *flags(*settings)]
    said = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "with mine.toml, lengths.py, my_rule.py; its run directory there:" in said.stdout
    (job,) = re.findall(r"^submitted (mine-\d{8}-\d{6}),", said.stdout, re.MULTILINE)
    return job, out


def test_a_submitted_job_trains_and_shows_its_metrics(head, session, data, tmp_path):
    env, dashboard, metrics = head
    entrypoint = ["star-r1", "train", "deploy/runs/tiny_cpu.toml", "--out", f"{tmp_path}/run"]
    entrypoint += flags("loop.steps=4", f"data.path={data}")
    submit = [BIN / "ray", "job", "submit", "--address", dashboard, "--working-dir", ".", "--", *entrypoint]
    with (tmp_path / "job.log").open("w") as log:
        job = subprocess.Popen(submit, env=env, stdout=log, stderr=subprocess.STDOUT)
    logs = tmp_path / "job.log"

    def rewards() -> list[str]:
        assert job.poll() in (None, 0), logs.read_text()
        return re.findall(r"^ray_star_r1_reward\{.*\} (\S+)", read(metrics), flags=re.MULTILINE)

    assert all(-20 < float(value) < 20 for value in wait_for(rewards, 240, "star_r1_reward on the metrics port"))
    assert "ray_star_r1_staleness_max{" in read(metrics)
    assert job.wait(240) == 0, logs.read_text()
    text = logs.read_text()
    assert "using the Ray cluster at" in text
    assert "asks for no token: whoever reaches its ports can run code there as you" in text
    assert "step   4/4" in text
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.fixture
def ask(head, monkeypatch, capsys):
    """A command of star-r1, given at the cluster's address; what it says. *away*: where no run directory is seen."""

    def asked(*words: str, away: bool = False, refused: bool = False) -> str:
        monkeypatch.setattr(find, "_is_of", (lambda job, folder: False) if away else seen_here)
        capsys.readouterr()
        with pytest.raises(SystemExit) if refused else contextlib.nullcontext():
            main([*words, "--address", head[1]])
        said = capsys.readouterr()
        return said.out + said.err

    seen_here = find._is_of
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return asked


def test_a_run_does_what_it_is_asked_from_wherever_its_head_is_reached(head, session, ask, tmp_path):
    job, out = session
    rows = out / "metrics.jsonl"
    wait_for(lambda: (out / "status.json").exists(), 240, "the run")
    assert ask("status", job, away=True).startswith("paused: step 0 of 1000000")
    assert "goes on from version 0" in ask("resume", job)
    wait_for(lambda: rows.exists() and rows.read_text().count("\n") > 2, 60, "the third step")

    assert "paused at version" in ask("pause", job, away=True)
    wait_for(lambda: last_event(out, "served") == last_event(out, "trained"), 60, "the end of what was in flight")
    steps = rows.read_text().count("\n")
    assert ask("status", job).startswith("paused: step ")
    assert "scorers 2 of 2 serve" in ask("scale", job, "--scorers", "2")
    kept = re.fullmatch(rf"the checkpoint of step (\d+) is in {out}\n", ask("checkpoint", job, away=True))
    assert kept is not None
    assert steps <= int(kept[1]) <= steps + 2  # groups that were in flight may still have made steps
    steps = rows.read_text().count("\n")
    assert steps <= int(kept[1])  # nothing more was sampled, and nobody taken for hung
    assert "goes on from version" in ask("resume", job)
    wait_for(lambda: rows.read_text().count("\n") > steps, 60, "a step after the pause")

    ask("doctor", job, "--out", f"{tmp_path}/it.zip", away=True)
    found = doctor.read(tmp_path / "it.zip")
    assert {f"workers/{name}.txt" for name in ("driver", "rollout-0", "learner-0-rank-0", "reward-1")} <= found.keys()
    assert "vllm-core" in found["workers/rollout-0.txt"]  # a thread of its engine
    assert "RolloutActor" in found["actors.json"]
    assert "resume" in found["job.txt"]

    assert "stopped after step" in ask("stop", job, away=True)
    assert ask("status", job, away=True).startswith("stopped: step ")
    assert "no run goes on there: stopped" in ask("pause", job, away=True, refused=True)

    def jobs() -> list[tuple[str, str]]:
        found = json.loads(read(f"{head[1]}/api/jobs/"))
        return [(it["metadata"]["job_name"], it["status"]) for it in found if it["metadata"]]

    wait_for(lambda: ("mine", "SUCCEEDED") in jobs(), 30, "the end of the job")
    assert {status for name, status in jobs() if name == "star-r1 status"} == {"SUCCEEDED"}
    assert "paused" in {event.name for event in read_events(out / "journal.jsonl")[0]}


def last_event(out: Path, name: str) -> int:
    """The step or version of the newest event of this *name*."""
    found = [event.facts for event in read_events(out / "journal.jsonl")[0] if event.name == name]
    return found[-1].get("step", found[-1].get("version"))
