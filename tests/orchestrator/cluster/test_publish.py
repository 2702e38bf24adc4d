"""Publishing, with fakes: by NCCL both sides are in the broadcast at the same time; ranks export buckets in turn."""

import asyncio
from typing import Any

import pytest

from learner.config import LearnerConfig
from orchestrator.cluster.publish import NcclPublisher, StorePublisher, make_publisher
from orchestrator.cluster.ranks import BUCKET_BYTES, LearnerRanks
from orchestrator.loop.roles import Exported
from records.manifest import Manifest, TensorInfo
from records.samples import PolicyVersion
from rollout.config import RolloutConfig


class FakeWorker:
    """Remembers where it was to meet the learner."""

    def __init__(self, events: list[str], name: str) -> None:
        self.events, self.name, self.join = events, name, self

    def remote(self, init_info: dict[str, Any]) -> "asyncio.Future[None]":
        assert init_info["packed"]  # as the learner's side sends
        place = f"{init_info['master_address']}:{init_info['master_port']}"
        self.events.append(f"{self.name} joins {place} as {init_info['rank_offset']} of {init_info['world_size']}")
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class FakeSides:
    """Learner and rollout workers: neither leaves the broadcast before the other is in it."""

    def __init__(self, workers: int) -> None:
        self.events: list[str] = []
        self.workers = [FakeWorker(self.events, f"worker {index}") for index in range(workers)]
        self.barrier = asyncio.Barrier(2)

    async def address(self, timeout_s: float) -> tuple[str, int]:
        return "learner", 1234

    async def call(self, what: str, method: str, *args: Any) -> list[Any]:
        self.events.append(method)
        if method == "broadcast":
            await self.barrier.wait()
        if method == "manifest":
            info = TensorInfo(name="a", dtype="float32", shape=(1,), checksum="")
            return [Manifest(version=args[0], buckets=((info,),), is_whole=False)]
        return []

    async def receive(self, exported: Exported) -> float:
        assert exported.buckets == ()
        self.events.append(f"receive {exported.manifest.version}")
        await self.barrier.wait()
        return 0.25


async def test_nccl_sides_meet_once_and_again_when_a_worker_was_added():
    sides = FakeSides(workers=2)
    publisher = NcclPublisher(sides, sides, RolloutConfig(weight_transport="nccl", tensor_parallel_size=2))
    met = ["worker 0 joins learner:1234 as 1 of 5", "worker 1 joins learner:1234 as 3 of 5", "join_broadcast"]
    for version, meeting in ((1, met), (2, [])):
        assert await asyncio.wait_for(await publisher.send(PolicyVersion(version)), 10) == 0.25
        assert sorted(sides.events) == sorted([*meeting, "manifest", "broadcast", f"receive {version}"])
        sides.events.clear()
    sides.workers.append(FakeWorker(sides.events, "worker 2"))
    await (await publisher.send(PolicyVersion(3)))
    assert "worker 2 joins learner:1234 as 5 of 7" in sides.events


class FakeRank:
    """Answers for its bucket, or the other's, when *all_asked* has been passed by the calls for every bucket."""

    def __init__(self, rank: int, num_buckets: int, all_asked: asyncio.Barrier) -> None:
        self.rank, self.num_buckets, self.all_asked = rank, num_buckets, all_asked
        self.weight_bucket_count = self.weight_bucket = self

    def options(self, name: str, num_returns: int = 1) -> "FakeRank":
        assert num_returns == (2 if name == "export" else 1)
        return self

    def remote(self, number: int) -> Any:
        if number == BUCKET_BYTES:
            return self._count()
        return self._describe(number), f"{number} at rank {self.rank}"

    async def _count(self) -> int:
        return self.num_buckets

    async def _describe(self, number: int) -> tuple[TensorInfo, ...]:
        await self.all_asked.wait()
        name = f"{number} of rank {self.rank}"
        return (TensorInfo(name=name, dtype="float32", shape=(1,), checksum=""),) if number % 2 == self.rank else ()


async def test_all_buckets_are_asked_for_at_once_and_each_is_taken_from_the_rank_whose_turn_it_is():
    all_asked = asyncio.Barrier(2 * 5)
    ranks = [FakeRank(rank, 5, all_asked) for rank in range(2)]
    learner = LearnerRanks(ranks, LearnerConfig(ranks=2, lora_rank=4), 10.0)
    exported = await asyncio.wait_for(learner.export(PolicyVersion(7)), 10)
    turns = [(number, number % 2) for number in range(5)]
    assert exported.buckets == tuple(f"{number} at rank {rank}" for number, rank in turns)
    assert [info.name for info in exported.manifest.tensors] == [f"{number} of rank {rank}" for number, rank in turns]
    assert (exported.manifest.version, exported.manifest.is_whole) == (7, False)


@pytest.mark.parametrize(("transport", "kind"), [("object_store", StorePublisher), ("nccl", NcclPublisher)])
def test_the_run_file_names_the_transport(transport: str, kind: type):
    config = RolloutConfig.model_validate({"weight_transport": transport})
    assert isinstance(make_publisher(None, None, config), kind)  # type: ignore[arg-type]
