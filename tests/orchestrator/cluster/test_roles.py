"""Nodes that are for workers of one role: a cluster of three, on this machine, whose head is for none."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from orchestrator.cluster.placement import (
    ROLE,
    Place,
    give_back,
    place_learner,
    place_worker,
    reward_bundle,
    reward_home,
)
from orchestrator.config import ConfigError, load_run_config

CONFIG = load_run_config(Path("deploy/runs/tiny_cpu.toml"), [])
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, str]]:
    """The id of the node of each role; there is none for reward workers."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    made = {role: cluster.add_node(num_cpus=2, labels={ROLE: role}) for role in ("learner", "rollout")}
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield {role: node.node_id for role, node in made.items()}
    finally:
        ray.shutdown()
        cluster.shutdown()


def node_of(place: Place) -> str:
    return placement_group_table(place.group)["bundles_to_node_id"][place.bundle]


async def place(name: str) -> Place:
    found = await place_worker(CONFIG, name, {"CPU": 1.0}, lambda lacks: False)
    assert found is not None
    return found


def test_workers_keep_to_the_nodes_of_their_role_however_much_room_others_have(nodes: dict[str, str]) -> None:
    ranks = asyncio.run(place_learner(CONFIG, "learner-0"))
    workers = [asyncio.run(place(f"rollout-{number}")) for number in range(2)]
    assert [node_of(each) for each in ranks] == [nodes["learner"]]
    assert [node_of(each) for each in workers] == [nodes["rollout"]] * 2
    with pytest.raises(ConfigError, match=r"rollout-2 needs 1 CPU on one node, and the cluster has 0 of 2 CPUs on \S+"):
        asyncio.run(place("rollout-2"))
    give_back([*ranks, *workers])


def test_a_role_that_no_node_is_for_is_named(nodes: dict[str, str]) -> None:
    home = reward_home(CONFIG, [])
    with pytest.raises(ConfigError, match=rf"the cluster has nothing \(no node has the label {ROLE}=reward\) free"):
        asyncio.run(place_worker(CONFIG, "reward-0", reward_bundle(), lambda lacks: False, home=home))


def test_who_waits_for_room_waits_for_that_of_its_role(nodes: dict[str, str]) -> None:
    taken = [asyncio.run(place(f"rollout-{number}")) for number in range(2)]

    async def wait_until_one_is_given_back() -> Place | None:
        waits = asyncio.Event()

        def may_wait(lacks: str) -> bool:
            waits.set()
            return True

        placing = asyncio.create_task(place_worker(CONFIG, "rollout-2", {"CPU": 1.0}, may_wait))
        await waits.wait()
        give_back(taken[:1])
        return await placing

    placed = asyncio.run(wait_until_one_is_given_back())
    assert placed is not None
    assert node_of(placed) == nodes["rollout"]
    give_back([placed, taken[1]])
