"""Which node workers come to, on Ray's logical GPUs: a cluster of two nodes of 8, on this machine."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from orchestrator.cluster import placement
from orchestrator.cluster.crew import Crew
from orchestrator.cluster.placement import Place, place_learner, place_worker, reward_bundle, rollout_bundle
from orchestrator.config import ConfigError, RunConfig, load_run_config

TINY = Path("deploy/runs/tiny_cpu.toml")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_nodes_of_8() -> Iterator[None]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 8})
    cluster.add_node(num_cpus=16, num_gpus=8)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def cluster(two_nodes_of_8: None) -> Iterator[None]:
    yield
    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(key)))
    while ray.available_resources().get("GPU") != 16.0:
        os.sched_yield()


def gpu_run(*settings: str) -> RunConfig:
    return load_run_config(TINY, ["device=gpu", "loop.groups_per_step=32", *settings])


async def place_rollout_worker(config: RunConfig, index: int) -> Place:
    place = await place_worker(config, f"rollout-{index}", rollout_bundle(config), lambda lacks: False)
    assert place is not None
    return place


def nodes_of(places: list[Place]) -> list[str]:
    return [placement_group_table(place.group)["bundles_to_node_id"][place.bundle] for place in places]


async def place_all(config: RunConfig) -> tuple[list[str], list[str]]:
    ranks = await place_learner(config, "learner-0")
    workers = [await place_rollout_worker(config, index) for index in range(config.rollout.workers)]
    return nodes_of(ranks), nodes_of(workers)


def occupy(*gpus: float) -> None:
    """So many GPUs of some nodes, one number a node."""
    group = placement_group([{"GPU": count} for count in gpus], strategy="STRICT_SPREAD")
    assert group.wait(10)
    while ray.available_resources().get("GPU") != 16.0 - sum(gpus):
        os.sched_yield()


@pytest.mark.parametrize("workers", [1, 4])
def test_a_run_that_one_node_holds_has_its_learner_on_one_node(cluster, workers):
    config = gpu_run(f"rollout.workers={workers}", f"learner.ranks={workers}")
    ranks, _ = asyncio.run(place_all(config))
    assert len(ranks) == workers
    assert len(set(ranks)) == 1


def test_a_learner_of_8_fills_a_node_and_leaves_the_other_to_8_rollout_workers(cluster):
    ranks, workers = asyncio.run(place_all(gpu_run("rollout.workers=8", "learner.ranks=8")))
    assert len(set(ranks)) == len(set(workers)) == 1
    assert set(ranks) != set(workers)


def test_a_learner_larger_than_a_node_takes_as_few_as_it_can(cluster):
    ranks, workers = asyncio.run(place_all(gpu_run("rollout.workers=4", "learner.ranks=12")))
    assert sorted(Counter(ranks).values()) == [4, 8]
    assert len(workers) == 4


def test_tensor_parallel_workers_have_all_their_gpus_on_one_node_that_a_learner_leaves_whole(cluster):
    occupy(4)
    config = gpu_run("rollout.tensor_parallel_size=8", "learner.ranks=4")
    ranks, (worker,) = asyncio.run(place_all(config))  # the 4 that are left of one node, and the 8 of the other
    assert {worker} != set(ranks)


def test_a_worker_whose_gpus_are_free_but_not_on_one_node_is_refused_with_what_is_free(cluster, monkeypatch):
    monkeypatch.setattr(placement, "PLACED_WITHIN_S", 2.0)
    occupy(5, 4)  # of the 7 that are left, the learner takes 3 of the 3
    config = gpu_run("rollout.tensor_parallel_size=4", "rollout.workers=2", "learner.ranks=3")
    with pytest.raises(ConfigError) as refused:
        asyncio.run(place_all(config))
    said = str(refused.value)
    assert "rollout-1 needs 4 GPUs on one node, and the cluster has" in said
    assert said.count("0 of 8 GPUs") == 2
    assert "The whole run needs 11 GPUs and 0.1 CPUs (learner.ranks 3, rollout.workers 2" in said


def test_reward_workers_are_spread_over_the_nodes(cluster, tmp_path):
    async def place() -> list[Place]:
        placed = asyncio.Event()
        placed.set()
        crew = Crew(gpu_run(), tmp_path, lambda event, **facts: None, placed)
        return await asyncio.gather(*(crew.place(f"reward-{it}", reward_bundle(), apart=True) for it in range(4)))

    assert sorted(Counter(nodes_of(asyncio.run(place()))).values()) == [2, 2]


def test_a_worker_waits_for_room_where_it_may_and_says_what_it_lacks(cluster, monkeypatch):
    monkeypatch.setattr(placement, "PLACED_WITHIN_S", 0.5)
    occupying = placement_group([{"GPU": 8.0}, {"GPU": 8.0}], strategy="STRICT_SPREAD")
    assert occupying.wait(10)
    config, lacks = gpu_run(), list[str]()

    async def place() -> Place:
        waiting = asyncio.Event()

        def waits(lack: str) -> bool:
            lacks.append(lack)
            waiting.set()
            return True

        placing = asyncio.create_task(place_worker(config, "rollout-1", rollout_bundle(config), waits))
        await waiting.wait()
        assert not placing.done()
        remove_placement_group(occupying)
        return await placing

    asyncio.run(place())
    assert lacks[0].startswith("rollout-1 needs 1 GPU on one node, and the cluster has 0 of 8 GPUs")


def test_nobody_takes_room_while_the_learner_has_none(cluster, tmp_path, monkeypatch):
    """Neither at once nor while it waits: what comes free is the learner's."""
    monkeypatch.setattr(placement, "PLACED_WITHIN_S", 0.5)
    monkeypatch.setattr(placement, "ASKED_EVERY_S", 0.1)
    config = gpu_run()
    occupying = placement_group([{"GPU": 8.0}, {"GPU": 8.0}], strategy="STRICT_SPREAD")
    assert occupying.wait(10)

    async def place() -> list[Place]:
        learner_placed, waits = asyncio.Event(), asyncio.Event()
        learner_placed.set()
        crew = Crew(config, tmp_path, lambda event, **facts: waits.set(), learner_placed)
        crew.was_ready = True
        waiting = asyncio.create_task(crew.place("rollout-0", rollout_bundle(config), apart=False))
        await waits.wait()
        learner_placed.clear()
        await asyncio.sleep(0.5)
        remove_placement_group(occupying)
        later = asyncio.create_task(crew.place("rollout-1", rollout_bundle(config), apart=False))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        assert not later.done()
        assert ray.available_resources()["GPU"] == 16.0
        learner_placed.set()
        return await asyncio.gather(waiting, later)

    assert len(asyncio.run(place())) == 2


def test_an_actor_sees_its_gpus_and_has_the_node_s_share_of_threads(cluster, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")

    class Seen:
        def seen(self) -> tuple[str, ...]:
            return tuple(os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME"))

    config = gpu_run("rollout.tensor_parallel_size=4")
    monkeypatch.setattr(placement, "_nodes", lambda: [placement._Node("a", "", {}, {"GPU": 8, "CPU": 17})])
    place = asyncio.run(place_rollout_worker(config, 0))
    devices, threads, interface = ray.get(place.actor(Seen, "seen").remote().seen.remote())
    assert len(devices.split(",")) == 4
    assert threads == "8"  # 17 cores are 2 a GPU
    assert interface == "eth7"


def test_a_run_on_cpus_takes_none_of_a_cluster_s_gpus(cluster):
    config = load_run_config(TINY, ["rollout.workers=2", "learner.ranks=2"])
    ranks, _ = asyncio.run(place_all(config))
    assert len(ranks) == 2
    assert ray.available_resources()["GPU"] == 16.0
