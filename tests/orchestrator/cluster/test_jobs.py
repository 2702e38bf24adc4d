"""Runs that are Ray jobs, on a fake of the head: found, refused, told what to do."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import AuthenticationError

from orchestrator.cluster import jobs
from orchestrator.cluster.jobs import COMMAND, NAME, RELEASE, connect, own_job
from orchestrator.commands.cli import main
from orchestrator.run.control import own_release
from orchestrator.run.submission import check_room
from tests.orchestrator.run.test_travel import config

ROOT = Path(__file__).parents[3]
URL = "http://head:8265"
RAN = "2026-11-27 18:24:16,386\tINFO job_manager.py:581 -- Setting up.\nRunning entrypoint for job x: y\n"
TRAIN = "star-r1 train run.toml --out /far/run"


class FakeHead:
    """The client of a head whose jobs these are, by name; a job that is submitted says *answer* and has ended."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.logs: dict[str, str] = {}
        self.stopped: list[str] = []
        self.options: dict[str, Any] = {}
        self.answer, self.exit_status = "done\n", 0
        self.failure: Exception | None = None
        self.now_ms = 1_000_000
        self.answers: dict[str, Any] = {}

    def __call__(self, address: str) -> "FakeHead":
        """Ray's own takes the address of the environment, if there is one."""
        self.address = next((os.environ[name] for name in jobs.ADDRESSES if name in os.environ), address)
        return self

    def add(self, name: str, status: str = "RUNNING", log: str = "run directory: /far/run\n", **facts: Any) -> None:
        defaults = {"entrypoint": TRAIN, "metadata": None, "message": "", "driver_exit_code": None}
        defaults |= {"driver_node_id": "node-1", "start_time": self.now_ms, "end_time": None}
        job = defaults | facts
        self.jobs[name] = SimpleNamespace(submission_id=name, status=SimpleNamespace(value=status), **job)
        self.logs[name] = RAN + log

    def list_jobs(self) -> list[Any]:
        if self.failure:
            raise self.failure
        return [*self.jobs.values(), SimpleNamespace(submission_id=None)]

    def submit_job(self, *, entrypoint: str, submission_id: str, metadata: dict[str, str], **options: Any) -> None:
        self.options = options
        status = "FAILED" if self.exit_status else "SUCCEEDED"
        facts = {"driver_exit_code": self.exit_status, "end_time": self.now_ms, "message": "exit code"}
        self.add(submission_id, status, self.answer, entrypoint=entrypoint, metadata=metadata, **facts)

    def get_job_logs(self, name: str) -> str:
        return self.logs[name]

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        yield self.logs[name]

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)

    def delete_job(self, name: str) -> None:
        del self.jobs[name]

    def _do_request(self, method: str, path: str) -> Any:
        return SimpleNamespace(raise_for_status=lambda: None, json=lambda: {"data": self.answers[path.split("?")[0]]})


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> FakeHead:
    found = FakeHead()
    monkeypatch.setattr(jobs, "JobSubmissionClient", found)
    for name in jobs.ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said of a command that ends with status 2."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_a_command_is_done_on_the_drivers_node_and_ends_as_it_does_there(head: FakeHead, capsys):
    head.add("tiny-1")
    head.answer = "paused at version 7\n"
    main(["pause", "tiny-1", "--address", URL])
    assert capsys.readouterr().out == "paused at version 7\n"
    assert head.options == {"entrypoint_label_selector": {"ray.io/node-id": "node-1"}}
    head.exit_status = 2
    head.answer = "star-r1: no run goes on there\n"
    with pytest.raises(SystemExit) as ended:
        main(["scale", "tiny-1", "--rollouts", "3", "--dry-run", "--address", URL])
    assert ended.value.code == 2


def test_what_is_done_there_is_the_command_itself(head: FakeHead):
    head.add("tiny-1")
    main(["scale", "tiny-1", "--rollouts", "3", "--dry-run", "--address", URL])
    (job,) = (job for name, job in head.jobs.items() if name.startswith("scale-tiny-1-"))
    assert job.entrypoint == "star-r1 scale /far/run --rollouts 3 --dry-run"
    assert job.metadata == {NAME: "star-r1 scale", COMMAND: "scale"}


def test_the_list_of_jobs_keeps_the_last_commands_and_all_runs(head: FakeHead):
    """One that ended a moment ago is still looked after: deleted, it would come back as failed."""
    head.add("tiny-1")
    head.add("old", "SUCCEEDED", end_time=head.now_ms)
    for _ in range(3):
        main(["pause", "tiny-1", "--address", URL])
        head.now_ms += 20_000
    assert [name.split("-")[0] for name in head.jobs] == ["tiny", "old", "pause", "pause"]


def test_who_stops_waiting_stops_it_there(head: FakeHead, monkeypatch: pytest.MonkeyPatch):
    head.add("tiny-1")
    logs = head.get_job_logs

    def interrupted(name: str) -> str:
        if name != "tiny-1":
            raise KeyboardInterrupt
        return logs(name)

    monkeypatch.setattr(head, "get_job_logs", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(["checkpoint", "tiny-1", "--address", URL])
    assert [name.startswith("checkpoint-tiny-1-") for name in head.stopped] == [True]


def test_without_a_name_the_only_run_that_goes_on_is_meant(head: FakeHead, capsys):
    head.add("old", "SUCCEEDED")
    head.add("other", entrypoint="python serve.py")
    assert "0 runs go on at http://head:8265; no run goes on there (star-r1 submit" in refused(
        capsys, "status", "--address", URL
    )
    head.add("tiny-1")
    head.answer = "running\n"
    main(["status", "--address", URL])
    assert capsys.readouterr().out == "running\n"
    head.add("tiny-2", metadata={RELEASE: own_release()}, entrypoint="sh train.sh")
    said = refused(capsys, "status", "--address", URL)
    assert "2 runs go on at http://head:8265; name one of those that go on: tiny-1, tiny-2" in said


def test_a_run_that_has_not_said_its_directory_is_starting_or_has_failed(head: FakeHead, capsys):
    head.add("tiny-1", "PENDING", log="", message="Job is waiting for resources.")
    main(["status", "tiny-1", "--address", URL])
    assert capsys.readouterr().out.startswith("starting (Job is waiting for resources.): step 0")
    assert "tiny-1: its log names no run directory; it is starting" in refused(
        capsys, "pause", "tiny-1", "--address", URL
    )


def test_what_is_no_run_of_this_release_is_refused(head: FakeHead, capsys):
    head.add("tiny-1", metadata={RELEASE: "9.9.9"})
    head.add("other", entrypoint="python serve.py")
    said = refused(capsys, "pause", "tiny-1", "--address", URL)
    assert f"tiny-1: is a job of star-r1 9.9.9, and this is {own_release()}; give the command with that one" in said
    assert "other: is no run of star-r1, but python serve.py" in refused(capsys, "pause", "other", "--address", URL)
    said = refused(capsys, "pause", "nobody", "--address", URL)
    assert "nobody: no job of this name at http://head:8265; name one of those that go on: tiny-1" in said


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (AuthenticationError("401"), "the cluster asks for a token, and takes none that is here; set RAY_AUTH_MODE"),
        (ConnectionError("no"), "no Ray dashboard answers there; give the head's, for example http://HEAD:8265"),
        (RuntimeError("status code 500: out\nof luck"), "the cluster says: status code 500: out"),
    ],
)
def test_a_head_that_does_not_answer_is_said(head: FakeHead, failure: Exception, message: str, capsys):
    head.failure = failure
    assert f"--address {URL}: {message}" in refused(capsys, "status", "--address", URL)


def test_where_nothing_listens_is_said(capsys):
    said = refused(capsys, "status", "x", "--address", "http://127.0.0.1:9")
    assert "--address http://127.0.0.1:9: no Ray dashboard answers there" in said


def test_an_address_that_is_no_dashboards_is_said(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert "--address 127.0.0.1:6379: is not that of a Ray dashboard" in refused(capsys, "stop")


def test_an_address_that_is_given_goes_before_that_of_the_environment(head: FakeHead, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    connect(URL)
    assert head.address == URL
    connect(None)
    assert head.address == "http://other:8265"
    assert os.environ["RAY_ADDRESS"] == "http://other:8265"


def nodes(head: FakeHead, count: float, types: dict[str, str]) -> None:
    raylets = [{"raylet": {"state": state, "resourcesTotal": {"CPU": count}}} for state in ("ALIVE", "DEAD")]
    head.answers = {
        "/nodes": {"summary": raylets},
        "/api/cluster_status": {"clusterStatus": {"autoscalerReport": {"nodeTypeMapping": types}}},
    }


def test_a_run_that_asks_for_more_than_the_cluster_has_is_not_submitted(head: FakeHead, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    nodes(head, 2.0, {"abc": "node_abc"})
    run = ["submit", "deploy/runs/tiny_cpu.toml", "--set", "model=/models/tiny", "--set", "data.path=/data/tiny"]
    said = refused(capsys, *run, "--address", URL)
    assert "the run asks for 2.1 CPUs, and its nodes have 2; lower rollout.workers, learner.ranks" in said
    assert head.jobs == {}


def test_a_cluster_that_can_grow_is_only_said_to_have_to(head: FakeHead):
    nodes(head, 2.0, {"abc": "small-group"})
    said: list[str] = []
    check_room(connect(URL), config(), said.append)
    assert said == ["the run asks for 2.1 CPUs, and its nodes have 2: the cluster has to grow first"]


def submitted(head: FakeHead, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.chdir(ROOT)
    nodes(head, 8.0, {})
    run = ["submit", "deploy/runs/tiny_cpu.toml", "--set", "model=/models/tiny", "--set", "data.path=/data/tiny"]
    main([*run, "--address", URL, *arguments])
    return head.jobs[max(head.jobs)]


def test_a_submitted_run_has_a_name_and_says_how_to_come_back(head: FakeHead, monkeypatch, capsys):
    job = submitted(head, monkeypatch, "--out", "/shared/it's")
    assert job.metadata == {NAME: "tiny_cpu", RELEASE: own_release()}
    assert job.entrypoint == """star-r1 train tiny_cpu.toml --out '/shared/it'"'"'s' --resume"""
    assert Path(head.options["runtime_env"]["working_dir"]).name.startswith("star-r1-")
    said = capsys.readouterr().out
    assert f"submitted {job.submission_id}, with tiny_cpu.toml; its run directory there: /shared/it's" in said
    assert f"star-r1 status {job.submission_id} --address {URL}" in said


def test_without_out_a_run_has_a_directory_in_the_heads_home(head: FakeHead, monkeypatch):
    job = submitted(head, monkeypatch)
    assert job.entrypoint == f'star-r1 train tiny_cpu.toml --out "$HOME"/star-r1/{job.submission_id} --resume'


def test_a_run_that_is_followed_ends_the_command_as_it_ended(head: FakeHead, monkeypatch, capsys):
    head.exit_status, head.answer = 3, "step 1/80\n"
    with pytest.raises(SystemExit) as ended:
        submitted(head, monkeypatch, "--follow")
    assert ended.value.code == 3
    out, err = capsys.readouterr()
    assert out.endswith("step 1/80\n")
    assert "FAILED: exit code" in err


def test_ctrl_c_leaves_the_followed_run_alone_and_says_how_to_come_back(head: FakeHead, monkeypatch, capsys):
    async def interrupted(name: str) -> AsyncIterator[str]:
        raise KeyboardInterrupt
        yield ""

    monkeypatch.setattr(head, "tail_job_logs", interrupted)
    job = submitted(head, monkeypatch, "--follow")
    assert head.stopped == []
    said = capsys.readouterr().out
    assert f"{job.submission_id} goes on; to follow it again: ray job logs --follow {job.submission_id}" in said


def test_a_relative_out_is_refused(head: FakeHead, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    said = refused(capsys, "submit", "deploy/runs/tiny_cpu.toml", "--out", "output/run", "--address", URL)
    assert "--out output/run: is a path on the cluster; give it as every node sees it" in said


def test_a_driver_knows_which_job_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(jobs.SET_BY_RAY, raising=False)
    assert own_job() is None
    monkeypatch.setenv(jobs.SET_BY_RAY, '{"metadata": {"job_submission_id": "tiny-1"}}')
    assert own_job() == "tiny-1"


def test_doctor_of_a_run_elsewhere_keeps_what_the_head_tells_also_where_the_rest_fails(head, monkeypatch, tmp_path):
    head.add("tiny-1")
    head.exit_status, head.answer = 1, "star-r1: not found\n"
    main(["doctor", "tiny-1", "--address", URL, "--out", str(tmp_path / "it.zip")])
    from orchestrator.run.doctor import read

    found = read(tmp_path / "it.zip")
    assert found["job-log.txt"] == "run directory: /far/run\n"
    assert found["run.txt"].startswith("could not be had: star-r1 doctor failed there: star-r1: not found")
