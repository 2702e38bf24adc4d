"""A real Prometheus watches a real run: what is exported is what the table says, and every panel has something to show.

The head of the run's cluster has no dashboard, and exports all the same. In the middle a reward worker is killed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.monitoring.make_dashboard import ROWS
from orchestrator.cluster.metrics_table import METRICS, RUN
from orchestrator.loop.activity import Bucket, Phase
from tests.orchestrator.small_runs import TINY, command
from tests.prometheus import tool

pytestmark = pytest.mark.slow
WITHIN_S = 120.0
SETTINGS = ["loop.steps=14", "loop.groups_per_step=2", "rollout.samples_per_prompt=4", "evaluation.max_samples=2"]


class Watched:
    """A run that has ended, in *folder*, and the Prometheus that has watched it."""

    def __init__(self, folder: Path, url: str, began: float, ended: float) -> None:
        self.folder, self._url, self.began, self.ended = folder, url, began, ended

    def ask(self, what: str, **query: Any) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as page:
            return json.load(page)["data"]

    def curves(self, query: str) -> list[list[float]]:
        """Values second by second over the run, a list for each series."""
        found = self.ask("query_range", query=query, start=self.began, end=self.ended, step=1)["result"]
        return [[float(value) for _, value in series["values"]] for series in found]

    def rows(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(data, tmp_path_factory) -> Iterator[Watched]:
    tmp = tmp_path_factory.mktemp("watched")
    server = tool("prometheus")
    gcs, exported, asked = free_port(), free_port(), free_port()
    env = os.environ | {"RAY_metrics_report_interval_ms": "1000", "RAY_AUTH_MODE": "disabled"}
    ray_folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the names of its sockets must be short
    head = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={gcs}", "--num-cpus=4"]
    head += [f"--metrics-export-port={exported}", "--include-dashboard=false", "--disable-usage-stats"]
    head += [f"--temp-dir={ray_folder}", f"--dashboard-agent-listen-port={free_port()}"]
    config = tmp / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: ray, static_configs: [{{targets: ['127.0.0.1:{exported}']}}]}}]\n"
    )
    watching = [server, f"--config.file={config}", f"--storage.tsdb.path={tmp}/tsdb"]
    watching += [f"--web.listen-address=127.0.0.1:{asked}"]
    out = tmp / "a run"
    training = command("train", TINY, out, [*SETTINGS, f"data.path={data}"])
    started = []
    try:
        with (tmp / "log").open("w") as log:
            for each in (head, watching):
                started.append(subprocess.Popen(each, env=env, stdout=log, stderr=log))
            wait_for(lambda: answers(gcs) and answers(asked), started, tmp / "log")
            began = time.time()
            run = subprocess.Popen(training, env=env | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}, stdout=log, stderr=log)
            started.append(run)
            wait_for(lambda: has_row(out, 3), started, tmp / "log")
            os.kill(pid_of(out, "reward-0"), signal.SIGKILL)
            assert run.wait(WITHIN_S) == 0, (tmp / "log").read_text()
        yield Watched(out, f"http://127.0.0.1:{asked}", began, time.time())
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        shutil.rmtree(ray_folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def has_row(out: Path, count: int) -> bool:
    path = out / "metrics.jsonl"
    return path.exists() and len(path.read_text().splitlines()) >= count


def pid_of(out: Path, worker: str) -> int:
    lines = map(json.loads, (out / "journal.jsonl").read_text().splitlines())
    return next(line["pid"] for line in lines if line["event"] == "runs" and line["worker"] == worker)


def wait_for(holds: Callable[[], bool], started: list[subprocess.Popen], log: Path) -> None:
    """Poll other processes, which no event of ours can announce."""
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, log.read_text()
        assert all(process.poll() is None for process in started), log.read_text()
        time.sleep(0.1)


def test_what_a_run_exports_is_what_the_table_says(watched):
    series = watched.ask("series", **{"match[]": '{__name__=~"ray_star_r1_.*"}', "start": watched.began})
    found = {(one["__name__"].removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")) for one in series}
    assert found == {f"ray_{metric.name}" for metric in METRICS}
    for metric in METRICS:
        of_it = [one for one in series if one["__name__"].startswith(f"ray_{metric.name}") and "le" not in one]
        assert all({*metric.labels, RUN} <= one.keys() for one in of_it if one["__name__"] == f"ray_{metric.name}")
    assert {one[RUN] for one in series} == {"a run"}


@pytest.mark.parametrize("panel", [panel for row in ROWS for panel in row.panels], ids=lambda panel: panel.title)
def test_every_curve_of_every_panel_has_series(watched, panel):
    for legend, query in panel.curves.items():
        asked = query.replace("$__rate_interval", "5s").replace("$run", ".*")
        values = [value for curve in watched.curves(asked) for value in curve if value == value]
        assert values, f"{panel.title}, {legend}: {asked}"


def test_exactly_one_phase_is_1(watched):
    assert {value for curve in watched.curves("sum by (run) (ray_star_r1_phase)") for value in curve} == {1.0}
    seen = watched.ask("series", **{"match[]": "ray_star_r1_phase", "start": watched.began})
    assert {one["phase"] for one in seen} == set(Phase)


def test_the_counters_say_what_the_rows_say(watched):
    rows = watched.rows()
    last = {name: max(map(max, watched.curves(f"sum(ray_star_r1_{name}_total)"))) for name in ("steps", "samples")}
    assert last == {"steps": 14, "samples": 14 * 2 * 4}
    (tokens,) = watched.curves("sum(ray_star_r1_answer_tokens_total)")
    assert max(tokens) == sum(row["answer_tokens"] for row in rows)


def test_the_lost_worker_is_counted_by_its_kind(watched):
    lost = watched.ask("query", query="max_over_time(ray_star_r1_worker_losses_total[1h])", time=watched.ended)
    assert [(one["metric"]["kind"], one["value"][1]) for one in lost["result"]] == [("reward", "1")]


def test_rows_have_the_time_of_the_driver_from_its_start_to_the_last_step(watched):
    rows = watched.rows()
    spent = sum(row[f"{bucket}_s"] for row in rows for bucket in Bucket)
    # Over the steps and the start before them; the driver's imports came before its clock.
    assert rows[-1]["elapsed_s"] < spent < watched.ended - watched.began
    assert sum(row["productive_s"] for row in rows) == pytest.approx(sum(row["learn_s"] for row in rows), rel=0.05)
    assert 0 < sum(row["overlap_s"] for row in rows) <= sum(row["productive_s"] for row in rows)
    assert sum(row["wasted_s"] for row in rows) == 0
