"""Nodes, with all that is on them, leave a run and join it, and it comes out as if nothing had been.

pytest tests/faults/nodes.py: two minutes, in `make soak`; `make test` has the faults of single workers.
"""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.faults.faulty_run import Fault, FaultyRun, Outcome
from tests.faults.test_faults import check_comes_out_the_same

NODES = (Fault("node", "rollout", "sample"), Fault("node", "learner", "load"))


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
    witness = run.strike(fault, after=max(1, run.served()))
    if fault.kind == "learner":
        run.await_event(witness, "waiting")
        cluster.add_node(num_cpus=1)
    run.await_recovery(witness)
