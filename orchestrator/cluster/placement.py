"""Where workers run: Ray's placement groups, and what is said where there is no room.

The learner's ranks share a group, on one node where they fit, for they talk most. Each rollout worker has a group of
its own, all devices on one node, and each reward worker, on the node that has most room: workers can come and go. A
group that waits for room tells a cluster that can grow what is asked of it.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.config import ConfigError, RunConfig

logger = logging.getLogger(__name__)

REWARD_CPUS = 0.1
PLACED_WITHIN_S = 5.0
"""A cluster that has the room gives it in less than one."""
ASKED_EVERY_S = 1.0
ENV = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1"}
# Spin-waiting OpenMP threads starve a second engine on the same cores; compiled samplers make the first request slow.
CPU_ENV = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
PASSED_ON = ("NCCL_", "GLOO_")
"""What the user's environment says of the network, with these beginnings, is said to every worker."""

Bundle = dict[str, float]
_KINDS = ("GPU", "CPU")


class _Node(NamedTuple):
    id: str
    address: str
    free: Bundle
    total: Bundle


@dataclass(frozen=True, slots=True)
class Place:
    """What is kept for one actor: a *bundle* of a placement group."""

    group: PlacementGroup
    bundle: int

    def actor(self, worker: type, name: str, **options: Any) -> Any:
        """The class of the actor *name* at this place, to be made once. Not yet run on a GPU.

        Ray's pages show the name. It is taken in this driver alone: each has a namespace of its own.
        """
        held = self.group.bundle_specs[self.bundle]
        devices = int(held.get("GPU", 0))
        threads = {"OMP_NUM_THREADS": str(_threads_a_gpu() * devices)} if devices else CPU_ENV
        network = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
        return ray.remote(
            num_cpus=held.get("CPU", 0),
            num_gpus=devices,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, self.bundle),
            runtime_env={"env_vars": {**ENV, **network, **threads}},
            name=name,
            **options,
        )(worker)


async def place_learner(config: RunConfig, name: str) -> list[Place]:
    """A place for each rank of the learner *name*. Raises ConfigError where the cluster has none."""
    bundles = [_devices(config, 1)] * config.learner.ranks
    home = _learner_home(config)
    if home is not None and (places := await _reserve(name, bundles, "STRICT_PACK", home)):
        return places
    logger.warning("no node has room for all %d ranks of the learner, which will talk across nodes", len(bundles))
    places = await _reserve(name, bundles, "PACK")
    return places or _refuse(config, f"the learner needs {len(bundles)} x {_said(bundles[0])}")


def rollout_bundle(config: RunConfig) -> Bundle:
    return _devices(config, config.rollout.tensor_parallel_size)


def reward_bundle() -> Bundle:
    return {"CPU": REWARD_CPUS}


async def place_worker(
    config: RunConfig,
    name: str,
    bundle: Bundle,
    may_wait: Callable[[str], bool],
    goes_on: Callable[[], bool] = lambda: True,
    home: str | None = None,
) -> Place | None:
    """A place for the worker *name* on one node, on *home* if that has room.

    Where the cluster has none now, *may_wait* is told what it lacks, and says whether to wait for it; if not,
    ConfigError. None if the waiting no longer *goes_on*.
    """
    if home is not None and (places := await _reserve(name, [bundle], "STRICT_PACK", home)):
        return places[0]
    if places := await _reserve(name, [bundle], "STRICT_PACK"):
        return places[0]
    need = f"{name} needs {_said(bundle)}" + (" on one node" if "GPU" in bundle or bundle["CPU"] >= 1 else "")
    if not may_wait(f"{need}, and the cluster has {_free()} free"):
        _refuse(config, need)
    group = placement_group([bundle], strategy="STRICT_PACK", name=name)
    placed = False
    try:
        while not placed and goes_on():
            placed = await asyncio.to_thread(group.wait, ASKED_EVERY_S)
    finally:
        if not placed:
            remove_placement_group(group)
    return Place(group, 0) if placed else None


def reward_home(config: RunConfig, others: Iterable[str]) -> str:
    """The node for one more reward worker: with the fewest of the *others*, whose nodes these are, and most CPUs free.

    Where workers take whole CPUs it does not break one, if it can.
    """
    taken = Counter(others)

    def cost(node: _Node) -> tuple[bool, bool, int, float, str]:
        free = node.free.get("CPU", 0.0)
        breaks = config.device == "cpu" and free % 1 < REWARD_CPUS - 1e-6
        return free < REWARD_CPUS, breaks, taken[node.id], -free, node.id

    return min(_nodes(), key=cost).id


def give_back(places: Sequence[Place]) -> None:
    """End what runs there, and let others have the room."""
    for key in {place.group.id for place in places}:
        remove_placement_group(PlacementGroup(key))


def wanted(config: RunConfig) -> Bundle:
    """What the whole run asks for."""
    per_rollout = config.rollout.tensor_parallel_size if config.device == "gpu" else 1
    kind = config.device.upper()
    needs = {kind: float(config.rollout.workers * per_rollout + config.learner.ranks)}
    return needs | {"CPU": needs.get("CPU", 0.0) + REWARD_CPUS * config.reward_service.workers}


def _devices(config: RunConfig, count: int) -> Bundle:
    """GPU workers ask for no CPU: a node may offer fewer CPUs than GPUs."""
    return {"GPU": float(count)} if config.device == "gpu" else {"CPU": 1.0}


def _learner_home(config: RunConfig) -> str | None:
    """The node whose use for the learner takes the least room from rollout workers, and of those the fullest.

    Ray would begin to fill an empty one, and a large rollout worker would fit nowhere.
    """
    kind, ranks = config.device.upper(), config.learner.ranks
    per_rollout = _devices(config, config.rollout.tensor_parallel_size)[kind]
    rooms = [(int(node.free.get(kind, 0)), node.id) for node in _nodes()]
    fits = [(free // per_rollout - (free - ranks) // per_rollout, free, name) for free, name in rooms if free >= ranks]
    return min(fits)[2] if fits else None


async def _reserve(name: str, bundles: Sequence[Bundle], strategy: str, node_id: str | None = None) -> list[Place]:
    """A place for each of *bundles*, in a group of this *name*, or none at all."""
    at_home = None if node_id is None else [{"ray.io/node-id": node_id}] * len(bundles)
    group = placement_group(list(bundles), strategy=strategy, name=name, bundle_label_selector=at_home)
    if not await asyncio.to_thread(group.wait, PLACED_WITHIN_S):
        remove_placement_group(group)
        return []
    return [Place(group, index) for index in range(len(bundles))]


def _refuse(config: RunConfig, need: str) -> NoReturn:
    raise ConfigError(
        f"{need}, and the cluster has {_free()} free. The whole run needs {_said(wanted(config))} (learner.ranks "
        f"{config.learner.ranks}, rollout.workers {config.rollout.workers}, tensor_parallel_size "
        f"{config.rollout.tensor_parallel_size}, reward_service.workers {config.reward_service.workers} at "
        f"{REWARD_CPUS} CPU); add nodes, lower these numbers, or end what runs there"
    )


def _free() -> str:
    nodes = [
        ", ".join(
            f"{node.free.get(kind, 0):g} of {node.total[kind]:g} {kind}s" for kind in _KINDS if kind in node.total
        )
        + f" on {node.address} ({node.id[:8]})"
        for node in _nodes()
    ]
    return "; ".join(nodes) or "nothing"


def _said(bundle: Bundle) -> str:
    return " and ".join(f"{count:g} {kind}{'s' if count != 1 else ''}" for kind, count in bundle.items() if count)


def _nodes() -> list[_Node]:
    """All that are up."""
    from ray._private.state import available_resources_per_node  # Ray has no public call that tells nodes apart

    free = available_resources_per_node()
    return [
        _Node(node["NodeID"], node["NodeManagerAddress"], free.get(node["NodeID"], {}), node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def _threads_a_gpu() -> int:
    """CPU cores for each GPU, on the node that has fewest: Ray would give a worker without CPUs one thread."""
    shares = [node.total.get("CPU", 1) // node.total["GPU"] for node in _nodes() if node.total.get("GPU")]
    return max(1, int(min(shares, default=1)))
