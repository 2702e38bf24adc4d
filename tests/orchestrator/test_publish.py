"""The order of a publish by NCCL, with fakes: both sides must be in the broadcast at the same time."""

import asyncio
from typing import Any

import pytest

from orchestrator.publish import NcclPublisher, StorePublisher, make_publisher
from orchestrator.roles import Exported
from rollout.config import RolloutConfig
from tvr.manifest import Manifest, TensorInfo
from tvr.records import PolicyVersion


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
            return [Manifest(version=args[0], buckets=((info,),))]
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


@pytest.mark.parametrize(("transport", "kind"), [("object_store", StorePublisher), ("nccl", NcclPublisher)])
def test_the_run_file_names_the_transport(transport: str, kind: type):
    config = RolloutConfig.model_validate({"weight_transport": transport})
    assert isinstance(make_publisher(None, None, config), kind)  # type: ignore[arg-type]
