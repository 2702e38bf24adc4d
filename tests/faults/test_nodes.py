"""Four nodes on one machine: they leave and join while a run goes on, with and without a publish in flight."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.faults.faulty_run import Fault, FaultyRun, Outcome, run_undisturbed
from tests.faults.settings import settings

pytestmark = pytest.mark.slow

PLAN = (Fault("node", "rollout", "sample"), Fault("node", "rollout", "load"), Fault("node", "learner", "load"))


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


def test_nodes_leave_and_join_and_the_run_comes_out_the_same(cluster: Cluster, data: Path, tmp_path: Path):
    given = settings(data, 12, "rollout.workers=2")
    undisturbed = run_undisturbed(tmp_path / "undisturbed", given)
    run = FaultyRun(tmp_path / "faulty", given, environment={"RAY_ADDRESS": cluster.address})
    try:
        run.start()
        version = 1
        for fault in PLAN:
            witness = run.strike(fault, after=version)
            cluster.add_node(num_cpus=1)
            run.await_recovery(witness)
            version = max(event.facts["version"] for event in run.events() if event.name == "served")
        run.finish()
    finally:
        run.end()
    assert [witness.fault for witness in run.witnesses] == list(PLAN)
    outcome = Outcome.of(run.out)
    assert outcome.prompts == undisturbed.prompts
    assert outcome.parameters == undisturbed.parameters
