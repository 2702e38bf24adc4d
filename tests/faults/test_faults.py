"""Workers, and nodes with all that is on them, are lost in a run, and it comes out as if nothing had been.

`README.md` says what is promised; `make soak` makes many more faults, drawn from a seed.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.faults.faulty_run import Fault, FaultyRun, Outcome, run_undisturbed
from tests.faults.settings import settings

pytestmark = pytest.mark.slow

STEPS = 16
WORKERS = (
    Fault("kill", "rollout", "sample"),
    Fault("kill", "reward", "score"),
    Fault("kill", "learner", "step"),
    Fault("kill", "rollout", "load"),
    Fault("stop", "rollout", "sample"),
    Fault("kill", "driver", "export"),
)
NODES = (Fault("node", "rollout", "sample"), Fault("node", "learner", "load"))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed") / "run", settings(data, STEPS))


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Iterator[FaultyRun]:
    it = FaultyRun(tmp_path / "faulty", settings(data, STEPS))
    yield it
    it.end()


def suffer(run: FaultyRun, fault: Fault) -> None:
    version = max((event.facts["version"] for event in run.events() if event.name == "served"), default=1)
    witness = run.strike(fault, after=version)
    run.await_recovery(witness)


def check_comes_out_the_same(run: FaultyRun, undisturbed: Outcome, faults: tuple[Fault, ...]) -> None:
    run.finish()
    assert [witness.fault for witness in run.witnesses] == list(faults)
    outcome = Outcome.of(run.out)
    assert outcome.prompts == undisturbed.prompts
    assert outcome.rows == undisturbed.rows
    assert outcome.parameters == undisturbed.parameters


def test_whatever_worker_is_lost_the_run_comes_out_the_same(run: FaultyRun, undisturbed: Outcome):
    run.start()
    for fault in WORKERS:
        suffer(run, fault)
    check_comes_out_the_same(run, undisturbed, WORKERS)
    hung = [event.facts["worker"] for event in run.events() if "completed nothing" in event.facts.get("why", "")]
    assert [path.stem for path in (run.out / "stacks").iterdir()] == hung
    assert "MainThread" in (run.out / "stacks" / f"{hung[0]}.txt").read_text()


class Half:
    """Takes a half of the head."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The head has room for reward workers alone, each of the three others for one learner rank or rollout worker."""
    # A node that is killed is found dead by its silence.
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    it = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1})
    half = ray.remote(num_cpus=0.5)(Half).remote()
    ray.get(half.__ray_ready__.remote())
    for _ in range(3):
        it.add_node(num_cpus=1)
    yield it
    ray.shutdown()
    it.shutdown()


def test_nodes_leave_and_join_and_the_run_comes_out_the_same(cluster: Cluster, run: FaultyRun, undisturbed: Outcome):
    run.environment = {"RAY_ADDRESS": cluster.address}
    run.start()
    for fault in NODES:
        suffer_and_join(run, fault, cluster)
    check_comes_out_the_same(run, undisturbed, NODES)


def suffer_and_join(run: FaultyRun, fault: Fault, cluster: Cluster) -> None:
    """A rollout worker finds the third node free; the learner is known to wait before another node comes."""
    version = max((event.facts["version"] for event in run.events() if event.name == "served"), default=1)
    witness = run.strike(fault, after=version)
    if fault.kind == "learner":
        run.await_event(witness, "waiting")
        cluster.add_node(num_cpus=1)
    run.await_recovery(witness)
