"""What the driver asks of the learner's ranks around checkpoints: with ranks that are no processes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learner import checkpoint as checkpoints
from learner.checkpoint import Checkpoint
from learner.config import LearnerConfig
from orchestrator.cluster.calls import WorkerTimeout
from orchestrator.cluster.on_node import Whereabouts
from orchestrator.cluster.ranks import LearnerRanks
from orchestrator.config import ConfigError, load_run_config
from orchestrator.run.directory import RunDirectory, open_run_directory
from records.samples import PolicyVersion
from tasks.tvr.task import PairSet
from tests.learner.checkpoint_process import make_facts, make_share, make_writers

CONFIG = load_run_config(Path("deploy/runs/tiny_cpu.toml"))
SHORT_S, LONG_S = 0.05, 20.0


class FakeRank:
    """Keeps the names of its calls in *calls*, but for those about its machine; what is slow outlasts SHORT_S."""

    slow = ("finish_checkpoint", "save_model", "step")

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.calls: list[str] = []
        self.connected_with: list[Checkpoint | None] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            if name not in ("whereabouts", "check_machine"):
                self.calls.append(name)
            await asyncio.sleep(2 * SHORT_S if name in self.slow else 0)
            return getattr(self, f"do_{name}", lambda *args: None)(*args)

        if name.startswith("do_"):
            raise AttributeError(name)
        method = SimpleNamespace(remote=call)
        method.options = lambda name: method
        return method

    def do_whereabouts(self) -> Whereabouts:
        return Whereabouts(node_id="a", address="10.0.0.1", pid=1, logs=())

    def do_host_meeting(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def do_damage(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        return checkpoint.damage(self.rank, self.world_size)

    def do_connect(self, address: str, port: int, checkpoint: Checkpoint | None) -> None:
        self.connected_with.append(checkpoint)

    def do_snapshot_bytes(self) -> tuple[str, int]:
        return f"10.0.0.{self.rank // 2}", 100 + self.rank


def make_learner(num_ranks: int = 2, timeout_s: float = LONG_S) -> tuple[LearnerRanks, list[FakeRank]]:
    ranks = [FakeRank(rank, num_ranks) for rank in range(num_ranks)]
    return LearnerRanks(ranks, LearnerConfig(timeout_s=timeout_s), LONG_S), ranks


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Of a run that has left versions 1, 2 and 3, each written by three ranks."""
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / "state.json").write_text('{"_fingerprint": "a"}')
    (tmp_path / "data" / "dataset_dict.json").write_text("{}")
    run = tmp_path / "run"
    run.mkdir()
    open_run_directory(CONFIG, run, "train", resume=False).begin(
        CONFIG, "train", PairSet(tmp_path / "data"), PolicyVersion(0)
    )
    for version in (1, 2, 3):
        writers = make_writers(run / "checkpoints", 3, keep=9)
        writers[0].begin(version)
        for rank, writer in enumerate(writers):
            writer.write(version, make_share(version, rank, 50), make_facts(version))
        writers[0].wait()
    return open_run_directory(CONFIG, run, "train", resume=True)


def damage(directory: RunDirectory, version: int, rank: int) -> None:
    path = directory.path / "checkpoints" / f"step-{version:06d}" / f"rank-{rank}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_ranks_go_on_from_the_newest_checkpoint_that_all_of_them_find_whole(directory: RunDirectory) -> None:
    damage(directory, 3, rank=1)  # in the share of rank 1 of two
    damage(directory, 2, rank=2)  # in that of rank 0
    learner, ranks = make_learner()
    asyncio.run(learner.start(LONG_S, directory))
    assert directory.version == 1
    assert [torn.version for torn in directory.torn] == [3, 2]
    assert directory.torn[0].reason.startswith("step-000003/rank-1.safetensors: its checksum is ")
    assert all(rank.connected_with == [directory.checkpoint] for rank in ranks)


def test_every_byte_is_hashed_once_before_the_ranks_join(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    sha256 = checkpoints._sha256
    monkeypatch.setattr(checkpoints, "_sha256", lambda path: hashed.append(path.name) or sha256(path))
    again = open_run_directory(CONFIG, directory.path, "train", resume=True)
    learner, ranks = make_learner()
    asyncio.run(learner.start(LONG_S, again))
    assert sorted(hashed) == ["rank-0.safetensors", "rank-1.safetensors", "rank-2.safetensors"]
    assert [rank.calls for rank in ranks] == [["damage", "host_meeting", "connect"], ["damage", "connect"]]


def test_without_a_whole_checkpoint_no_rank_joins(directory: RunDirectory) -> None:
    for version in (1, 2, 3):
        damage(directory, version, rank=0)
    learner, ranks = make_learner()
    with pytest.raises(ConfigError, match=r"there is no whole checkpoint(.|\n)*step-000003(.|\n)*step-000001"):
        asyncio.run(learner.start(LONG_S, directory))
    assert all("connect" not in rank.calls for rank in ranks)


def test_a_new_run_begins_without_a_checkpoint(tmp_path: Path) -> None:
    learner, ranks = make_learner()
    asyncio.run(learner.start(LONG_S, RunDirectory(tmp_path)))
    assert [rank.calls for rank in ranks] == [["host_meeting", "connect"], ["connect"]]
    assert [rank.connected_with for rank in ranks] == [[None], [None]]


SLOW: dict[str, Callable[[LearnerRanks], Awaitable[None]]] = {
    "the end of a checkpoint": lambda learner: learner.finish_checkpoint(),
    "saving": lambda learner: learner.save("folder"),
    "the next checkpoint": lambda learner: learner.checkpoint(),
}


@pytest.mark.parametrize("what", SLOW)
def test_what_the_disk_takes_has_its_own_deadline(what: str) -> None:
    learner, _ = make_learner(timeout_s=SHORT_S)
    asyncio.run(SLOW[what](learner))  # type: ignore[arg-type]


def test_a_step_has_the_deadline_of_the_learner() -> None:
    learner, _ = make_learner(timeout_s=SHORT_S)
    with pytest.raises(WorkerTimeout, match=r"learner step \(0\) did not answer within 0.05 s"):
        asyncio.run(learner.call("learner step", "step"))


def test_a_checkpoint_begins_when_the_last_is_written_on_all_ranks() -> None:
    learner, ranks = make_learner()
    asyncio.run(learner.checkpoint())
    assert all(rank.calls == ["finish_checkpoint", "save_checkpoint"] for rank in ranks)


def test_what_a_checkpoint_takes_is_counted_by_host() -> None:
    learner, _ = make_learner(num_ranks=3)
    assert asyncio.run(learner.snapshot_bytes()) == {"10.0.0.0": 100 + 101, "10.0.0.1": 102}
