"""A version's files, shared by the workers of a node: real locks, real processes."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from records.manifest import Bucket, Manifest, TensorInfo, checksum
from records.samples import PolicyVersion
from rollout.shm import remove_leftovers
from rollout.weight_files import WeightFiles, files_on_node

BUCKETS = [
    {"a": np.arange(24, dtype=np.uint8), "b": np.full(4, 7, np.uint8)},
    {"c": np.arange(10, dtype=np.uint8)[::-1].copy()},
]


def manifest_of(buckets: Sequence[Bucket]) -> Manifest:
    infos = tuple(
        tuple(
            TensorInfo(name=name, dtype="uint8", shape=(len(array),), checksum=checksum(array))
            for name, array in bucket.items()
        )
        for bucket in buckets
    )
    return Manifest(version=PolicyVersion(3), buckets=infos, is_whole=True)


MANIFEST = manifest_of(BUCKETS)
CONTENTS = [b"".join(array.tobytes() for array in bucket.values()) for bucket in BUCKETS]
NOTHING: list[Bucket] = [{}, {}]
"""To write from these is a KeyError."""


def contents(files: WeightFiles) -> list[bytes]:
    return [path.read_bytes() for path in files.paths]


async def test_a_file_holds_each_bucket_for_as_long_as_it_is_used(tmp_path: Path) -> None:
    async with files_on_node(MANIFEST, BUCKETS, tmp_path) as paths:
        assert [path.read_bytes() for path in paths] == CONTENTS
        assert not any(name.endswith(".new") for name in os.listdir(tmp_path))
    assert os.listdir(tmp_path) == []


async def test_an_update_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the engine"):
        async with files_on_node(MANIFEST, BUCKETS, tmp_path):
            raise RuntimeError("the engine")
    assert os.listdir(tmp_path) == []


def test_workers_of_a_node_use_what_the_first_has_written_and_the_last_removes_it(tmp_path: Path) -> None:
    first, second = WeightFiles(MANIFEST, tmp_path), WeightFiles(MANIFEST, tmp_path)
    first.hold(BUCKETS)
    second.hold(NOTHING)
    first.let_go()
    assert contents(second) == CONTENTS
    second.let_go()
    assert os.listdir(tmp_path) == []


def test_other_weights_have_other_files(tmp_path: Path) -> None:
    others = [BUCKETS[0], {"c": np.arange(10, dtype=np.uint8)}]  # another run's, say, of the same version
    files, of_others = WeightFiles(MANIFEST, tmp_path), WeightFiles(manifest_of(others), tmp_path)
    files.hold(BUCKETS)
    of_others.hold(others)
    files.let_go()
    assert contents(of_others) == [CONTENTS[0], bytes(range(10))]
    of_others.let_go()
    assert os.listdir(tmp_path) == []


WRITER = """
import sys
from pathlib import Path
from rollout.weight_files import WeightFiles
from tests.rollout.test_weight_files import BUCKETS, MANIFEST

class Gated(dict):
    def __getitem__(self, name):
        print("writing", flush=True)
        sys.stdin.readline()
        return super().__getitem__(name)

files = WeightFiles(MANIFEST, Path(sys.argv[1]))
files.hold([BUCKETS[0], Gated(BUCKETS[1])])
print("holding", flush=True)
sys.stdin.readline()
files.let_go()
"""


@contextmanager
def writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A worker that has written the first file, and writes the second when it is given a line; at the next it ends."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert says(process) == "writing"
        yield process
        process.kill()


def says(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")


def test_a_worker_waits_for_one_that_writes_and_keeps_the_files_when_that_ends(tmp_path: Path) -> None:
    files = WeightFiles(MANIFEST, tmp_path)
    with writer(tmp_path) as process, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(files.hold, NOTHING)
        go_on(process)
        assert says(process) == "holding"
        waiting.result(timeout=30)
        go_on(process)
        process.wait(timeout=30)
    assert contents(files) == CONTENTS
    assert remove_leftovers(tmp_path) == []
    files.let_go()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_writer_has_not_written_the_next_worker_writes(tmp_path: Path) -> None:
    files = WeightFiles(MANIFEST, tmp_path)
    with writer(tmp_path) as process, ThreadPoolExecutor(1) as threads:
        taking_over = threads.submit(files.hold, [{}, BUCKETS[1]])
        os.kill(process.pid, signal.SIGKILL)
        taking_over.result(timeout=30)
    assert contents(files) == CONTENTS
    files.let_go()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("when", ["writing", "holding"])
def test_files_of_a_killed_worker_are_leftovers(when: str, tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        if when == "holding":
            go_on(process)
            assert says(process) == "holding"
        assert remove_leftovers(tmp_path) == []
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert [path.name for path in tmp_path.glob("*.0")]
    assert len(remove_leftovers(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


def test_files_that_are_removed_while_a_worker_comes_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the lock file open, which is unlinked before it has the lock."""
    files, opened, flock = WeightFiles(MANIFEST, tmp_path), threading.Event(), fcntl.flock

    class Watched(dict[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            assert len(list(tmp_path.glob("*.lock"))) == 1  # nobody writes with a lock that others cannot see
            return super().__getitem__(name)

    def lock_later(lock: IO[bytes], how: int) -> None:
        opened.set()
        flock(lock, how)

    monkeypatch.setattr("rollout.weight_files.fcntl.flock", lock_later)
    with writer(tmp_path) as process, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(files.hold, [Watched(bucket) for bucket in BUCKETS])
        opened.wait()
        (lock,) = tmp_path.glob("*.lock")
        lock.unlink()
        process.kill()
        waiting.result(timeout=30)
    assert contents(files) == CONTENTS
    files.let_go()
    assert os.listdir(tmp_path) == []


def test_without_room_the_error_says_where_how_much_and_the_remedy(tmp_path: Path) -> None:
    files = WeightFiles(MANIFEST, tmp_path)
    second = files.paths[1]
    second.with_name(f"{second.name}.new").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=rf"{tmp_path} has no room for the 38 bytes of version 3, \d+ are free.*--shm-size"
    ):
        files.hold(BUCKETS)  # 24 + 4 + 10
    assert os.listdir(tmp_path) == []
    files.hold(BUCKETS)
    assert contents(files) == CONTENTS
    files.let_go()


async def test_an_update_that_is_cancelled_while_files_are_written_leaves_none(tmp_path: Path) -> None:
    begun, gate = threading.Event(), threading.Event()

    class Gated(dict[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            begun.set()
            gate.wait()
            return super().__getitem__(name)

    async def use() -> None:
        async with files_on_node(MANIFEST, [BUCKETS[0], Gated(BUCKETS[1])], tmp_path):
            raise AssertionError("it was cancelled before")

    update = asyncio.create_task(use())
    await asyncio.to_thread(begun.wait)
    update.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await update
    assert os.listdir(tmp_path) == []
