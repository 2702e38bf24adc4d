"""Checkpoints on disk: read back bit for bit, and whole whatever stops the writing."""

import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from learner import checkpoint as checkpoints
from learner.checkpoint import Checkpoint, CheckpointWriter, Torn, find_newest, open_checkpoint
from tests.learner import checkpoint_process
from tests.learner.checkpoint_process import make_facts, make_share, make_writers

SIZE = 50  # numbers in a large tensor; only the process that is killed writes more


def write(folder: Path, version: int, world_size: int = 2, keep: int = 2) -> None:
    """Rank 0 last, so that what happens has one order."""
    writers = make_writers(folder, world_size, keep)
    for writer in writers:
        writer.begin(version)
    for rank, writer in reversed(list(enumerate(writers))):
        writer.write(version, make_share(version, rank, SIZE), make_facts(version))
        writer.wait()


def find_whole(folder: Path) -> tuple[Checkpoint | None, list[Torn]]:
    """As a run of two ranks finds what it goes on from: one that either finds damaged is passed over."""
    checkpoint, torn = find_newest(folder)
    while checkpoint and (reasons := [*checkpoint.damage(0, 2), *checkpoint.damage(1, 2)]):
        torn.append(Torn(version=checkpoint.version, reason="; ".join(reasons)))
        checkpoint, older = find_newest(folder, before=checkpoint.version)
        torn += older
    return checkpoint, torn


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Bit for bit: also where NaN is not equal to itself, nor zero different from minus zero."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def assert_holds_its_version(checkpoint: Checkpoint, size: int = SIZE) -> None:
    shares = [make_share(checkpoint.version, rank, size) for rank in range(checkpoint.world_size)]
    assert_same(dict(checkpoint.read()), {name: tensor for share in shares for name, tensor in share.items()})
    assert checkpoint.facts == make_facts(checkpoint.version)
    assert checkpoint.path.name == f"step-{checkpoint.version:06d}"


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path: Path, world_size: int):
    shares = [
        {
            f"{rank}/float32": torch.tensor([[1.5, -0.0], [float("nan"), float("-inf")], [1e-45, rank]]),
            f"{rank}/bfloat16": torch.tensor([3.14159, float("nan"), -0.0, rank]).to(torch.bfloat16),
            f"{rank}/int64": torch.tensor([2**62 + 1, -1, rank]),
            f"{rank}/scalar": torch.tensor(rank),
            f"{rank}/empty": torch.zeros(0, 3),
        }
        for rank in range(world_size)
    ]
    shares[-1] = shares[-1] if world_size < 3 else {}  # a rank without a share
    writers = make_writers(tmp_path / "checkpoints", world_size)
    facts = {"data": {"epoch": 1, "seen": [0.1, None, True]}, "name": "Größe"}
    for writer in writers:
        writer.begin(7)
    for writer, share in zip(writers, shares, strict=True):
        writer.write(7, share, facts)
    for writer in writers:
        writer.wait()
    checkpoint, torn = find_newest(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert torn == []
    assert (checkpoint.version, checkpoint.world_size, checkpoint.facts) == (7, world_size, facts)
    assert_same(dict(checkpoint.read()), {name: tensor for share in shares for name, tensor in share.items()})
    assert checkpoint == open_checkpoint(tmp_path / "checkpoints" / "step-000007")
    ranks = [f"rank-{rank}.{suffix}" for rank in range(world_size) for suffix in ("json", "safetensors")]
    assert names(checkpoint.path) == sorted(["manifest.json", *ranks])


def test_a_part_is_what_the_flat_tensor_has_there(tmp_path: Path):
    (writer,) = make_writers(tmp_path, 1)
    tensors = {
        "matrix": torch.arange(12.0).view(4, 3),
        "deep": torch.arange(24.0).view(2, 3, 4),
        "flat": torch.arange(5.0),
    }
    writer.begin(1)
    writer.write(1, tensors, {})
    writer.wait()
    checkpoint = open_checkpoint(tmp_path / "step-000001")
    wanted = [
        (name, first, last)
        for name, tensor in tensors.items()
        for first in range(tensor.numel() + 2)  # a share of ZeRO-3 may begin and end behind the end
        for last in range(first, tensor.numel() + 3)
    ]
    for (name, first, last), part in zip(wanted, checkpoint.parts(wanted), strict=True):
        assert part.tolist() == tensors[name].flatten().tolist()[first:last], (name, first, last)


def test_the_names_are_those_of_all_files(tmp_path: Path):
    write(tmp_path, 1)
    assert sorted(open_checkpoint(tmp_path / "step-000001").names()) == sorted(
        make_share(1, 0, 1) | make_share(1, 1, 1)
    )


def test_a_name_in_two_files_is_an_error(tmp_path: Path):
    writers = make_writers(tmp_path, 2)
    writers[0].begin(1)
    for writer in writers:
        writer.write(1, {"weights": torch.zeros(1)}, {})
    writers[0].wait()
    with pytest.raises(ValueError, match=re.escape("step-000001/rank-1.safetensors: 'weights' is in another rank's")):
        next(open_checkpoint(tmp_path / "step-000001").read())


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No tensor is written before it is set."""
    opened, save_file = threading.Event(), safetensors.torch.save_file
    monkeypatch.setattr(safetensors.torch, "save_file", lambda *args: opened.wait(20) and save_file(*args))
    return opened


def test_writing_goes_on_behind_the_caller_who_may_reuse_what_it_gave(tmp_path: Path, gate: threading.Event):
    (writer,) = make_writers(tmp_path, 1)
    writer.begin(1)
    tensors, facts = make_share(1, 0, SIZE), make_facts(1)
    writer.write(1, tensors, facts)
    assert names(tmp_path) == ["step-000001.part"]
    tensors.clear()
    facts["seed"].append(2)
    gate.set()
    writer.wait()
    assert_holds_its_version(open_checkpoint(tmp_path / "step-000001"))


@pytest.mark.parametrize("call", ["begin", "write"])
def test_the_next_call_waits_for_the_write_that_is_running(tmp_path: Path, gate: threading.Event, call: str):
    (writer,) = make_writers(tmp_path, 1)
    writer.begin(1)
    (tmp_path / "step-000002.part").mkdir()
    writer.write(1, make_share(1, 0, SIZE), make_facts(1))
    threading.Timer(0.2, gate.set).start()
    if call == "begin":
        writer.begin(2)
    else:
        writer.write(2, make_share(2, 0, SIZE), make_facts(2))
    assert (tmp_path / "step-000001").exists()
    writer.wait()


def test_an_error_in_the_background_is_raised_by_every_later_call(tmp_path: Path):
    (writer,) = make_writers(tmp_path, 1)
    writer.begin(1)
    (tmp_path / "step-000001.part").rmdir()
    (tmp_path / "step-000001.part").write_text("a file where the folder should be")
    writer.write(1, make_share(1, 0, SIZE), {})
    calls: list[Callable[[], None]] = [
        writer.wait,
        lambda: writer.write(2, make_share(2, 0, SIZE), {}),
        lambda: writer.begin(2),
        writer.wait,
    ]
    for call in calls:
        with pytest.raises(Exception, match="Not a directory"):
            call()


def test_facts_that_json_cannot_hold_are_refused_at_once(tmp_path: Path):
    (writer,) = make_writers(tmp_path, 1)
    writer.begin(1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        writer.write(1, {}, {"step": torch.tensor(1)})


def test_rank_0_names_the_ranks_that_did_not_write_in_time(tmp_path: Path):
    writers = make_writers(tmp_path, 4, timeout_s=0.1)
    writers[0].begin(1)
    for rank in (0, 2):
        writers[rank].write(1, make_share(1, rank, SIZE), {})
    writers[2].wait()
    with pytest.raises(TimeoutError, match=r"step-000001\.part: rank-1, rank-3 not written within 0\.1 s"):
        writers[0].wait()
    assert names(tmp_path) == ["step-000001.part"]


def test_a_rank_that_stopped_while_it_noted_that_it_is_done_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writers = make_writers(tmp_path, 2, timeout_s=0.1)
    writers[0].begin(1)

    def write_half(path: Path, text: str) -> None:
        path.write_bytes(text.encode()[: len(text) // 2])
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_half)
        writers[1].write(1, make_share(1, 1, SIZE), {})
        with pytest.raises(Stopped):
            writers[1].wait()
    writers[0].write(1, make_share(1, 0, SIZE), {})
    with pytest.raises(TimeoutError, match="rank-1 not written"):
        writers[0].wait()


def test_only_the_newest_stay(tmp_path: Path):
    for version in (1, 2, 5, 10):
        write(tmp_path, version, keep=2)
    assert names(tmp_path) == ["step-000005", "step-000010"]


def test_a_later_version_that_is_left_over_does_not_count_among_those_kept(tmp_path: Path):
    write(tmp_path, 9)
    flip_byte(tmp_path / "step-000009" / "rank-0.safetensors", -1)
    write(tmp_path, 1, keep=1)
    write(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-000002", "step-000009"]


def test_to_keep_none_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="keep is 0"):
        CheckpointWriter(tmp_path, keep=0, rank=0, world_size=1, timeout_s=1)


def test_there_is_no_newest_where_nothing_was_written(tmp_path: Path):
    assert find_newest(tmp_path / "checkpoints") == (None, [])
    assert find_newest(tmp_path) == (None, [])


SUM = "[0-9a-f]{64}"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "not finished": (lambda path: path.rename(f"{path}.part"), r"step-000002\.part: was not finished"),
    "no manifest": (
        lambda path: (path / "manifest.json").unlink(),
        r"step-000002/manifest\.json: cannot be read: No such file or directory",
    ),
    "half a manifest": (
        lambda path: os.truncate(path / "manifest.json", 100),
        r"step-000002/manifest\.json: is not JSON: .*",
    ),
    "a manifest of zeros": (
        lambda path: (path / "manifest.json").write_bytes(bytes(100)),
        r"step-000002/manifest\.json: is not JSON: .*",
    ),
    "another JSON file": (
        lambda path: (path / "manifest.json").write_text("[]"),
        r"step-000002/manifest\.json: is not a manifest of format 1",
    ),
    "another format": (
        lambda path: change_manifest(path, '"format": 1', '"format": 2'),
        r"step-000002/manifest\.json: is not a manifest of format 1",
    ),
    "a fact changed": (
        lambda path: change_manifest(path, '"learning_rate": 0.2', '"learning_rate": 0.3'),
        r"step-000002/manifest\.json: its checksum is not that of its content",
    ),
    "a file shorter": (
        lambda path: os.truncate(path / "rank-1.safetensors", 300),
        r"step-000002/rank-1\.safetensors: has 300 bytes, the manifest says \d+",
    ),
    "a bit flipped": (
        lambda path: flip_byte(path / "rank-1.safetensors", -1),
        rf"step-000002/rank-1\.safetensors: its checksum is {SUM}, the manifest says {SUM}",
    ),
    "no file of a rank": (
        lambda path: (path / "rank-0.safetensors").unlink(),
        r"step-000002/rank-0\.safetensors: cannot be read: No such file or directory",
    ),
    "a file in place of the folder": (
        lambda path: (shutil.rmtree(path), path.write_text("")),
        r"step-000002/manifest\.json: cannot be read: Not a directory",
    ),
}


def change_manifest(path: Path, old: str, new: str) -> None:
    text = (path / "manifest.json").read_text()
    assert text.count(old) == 1
    (path / "manifest.json").write_text(text.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path: Path, damage: str):
    write(tmp_path, 1)
    write(tmp_path, 2)
    do_damage, reason = DAMAGES[damage]
    do_damage(tmp_path / "step-000002")
    checkpoint, torn = find_whole(tmp_path)
    assert checkpoint is not None
    assert checkpoint.version == 1
    assert_holds_its_version(checkpoint)
    assert [one.version for one in torn] == [2]
    assert re.fullmatch(reason, torn[0].reason)


def test_a_damaged_file_is_found_by_the_rank_in_whose_share_it_is(tmp_path: Path):
    write(tmp_path, 1, world_size=4)
    checkpoint = open_checkpoint(tmp_path / "step-000001")
    assert [checkpoint.damage(rank, 2) for rank in range(2)] == [(), ()]
    flip_byte(tmp_path / "step-000001" / "rank-3.safetensors", 20)
    (tmp_path / "step-000001" / "rank-1.safetensors").unlink()
    assert checkpoint.damage(0, 2) == ()  # files 0 and 2
    missing, flipped = checkpoint.damage(1, 2)
    assert missing == "step-000001/rank-1.safetensors: cannot be read: No such file or directory"
    assert re.fullmatch(rf"step-000001/rank-3\.safetensors: its checksum is {SUM}, the manifest says {SUM}", flipped)


def test_every_file_is_hashed_once_by_all_ranks_together_and_none_to_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path, 1, world_size=3)
    hashed: list[str] = []
    sha256 = checkpoints._sha256
    monkeypatch.setattr(checkpoints, "_sha256", lambda path: hashed.append(path.name) or sha256(path))
    checkpoint, _ = find_newest(tmp_path)
    assert checkpoint is not None
    assert hashed == []
    for rank in range(2):
        checkpoint.damage(rank, 2)
    assert sorted(hashed) == ["rank-0.safetensors", "rank-1.safetensors", "rank-2.safetensors"]


def test_only_versions_before_a_given_one_are_found(tmp_path: Path):
    for version in (1, 2, 3):
        write(tmp_path, version, keep=9)
    shutil.rmtree(tmp_path / "step-000002")
    for version in (2, 4):
        (tmp_path / f"step-00000{version}.part").mkdir()
    checkpoint, torn = find_newest(tmp_path, before=3)
    assert checkpoint == open_checkpoint(tmp_path / "step-000001")
    assert [one.version for one in torn] == [2]
    assert find_newest(tmp_path, before=1) == (None, [])


def test_every_newer_torn_one_is_named_and_no_older_one(tmp_path: Path):
    for version in (1, 2, 3, 4):
        write(tmp_path, version, keep=9)
    for version in (1, 3):
        flip_byte(tmp_path / f"step-00000{version}" / "rank-0.safetensors", -1)
    for version in (1, 2, 4):
        (tmp_path / f"step-00000{version}.part").mkdir()
    shutil.rmtree(tmp_path / "step-000004")
    checkpoint, torn = find_whole(tmp_path)
    assert checkpoint is not None
    assert checkpoint.version == 2
    assert [one.version for one in torn] == [4, 3]


class Stopped(BaseException):
    """The process was killed, or the power was cut, at this call."""


class Disk:
    """Stands between the writers and the disk; stops everything at call number *stop_at* (from 0), or never.

    With *halfway* that call has done half its work. It also knows what would survive a power cut: of a file, what was
    there when it was last synced; of a folder, the names it had when it was. Deletions always survive.
    """

    CALLS = ((os, "mkdir"), (os, "rename"), (os, "replace"), (os, "fsync"))
    CALLS_WITH_HALVES = ((shutil, "rmtree"), (safetensors.torch, "save_file"))

    def __init__(self, patch: pytest.MonkeyPatch, root: Path, stop_at: int | None, halfway: bool) -> None:
        self.root = root
        self.stop_at = stop_at
        self.halfway = halfway
        self.calls: list[str] = []
        self.synced_files: set[int] = set()
        self.synced_names: dict[int, dict[int, str]] = {}
        self.rmtree = shutil.rmtree
        self.save_file = safetensors.torch.save_file
        for path in [root, *root.rglob("*")]:
            self.note_synced(os.stat(path), path)
        doings = {"fsync": lambda file: self.note_synced(os.fstat(file), file), "rmtree": self.remove}
        for module, name in (*self.CALLS, *self.CALLS_WITH_HALVES):
            patch.setattr(module, name, self.hook(name, doings.get(name, getattr(module, name))))

    def hook(self, name: str, do: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            self.calls.append(name)
            if len(self.calls) - 1 != self.stop_at:
                return do(*args)
            if self.halfway and name == "rmtree":
                next(file for file in args[0].rglob("*") if file.is_file()).unlink()
            if self.halfway and name == "save_file":
                self.save_file(*args)
                os.truncate(args[1], args[1].stat().st_size // 2)
            raise Stopped(f"call {self.stop_at}: {name} {args}")

        return call

    def note_synced(self, status: os.stat_result, path: Path | int) -> None:
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(path) as entries:
                self.synced_names[status.st_ino] = {entry.inode(): entry.name for entry in entries}
        else:
            self.synced_files.add(status.st_ino)

    def remove(self, path: Path) -> None:
        for inode in (os.stat(one).st_ino for one in [path, *path.rglob("*")]):  # a new file may get the number again
            self.synced_files.discard(inode)
            self.synced_names.pop(inode, None)
            for known in self.synced_names.values():
                known.pop(inode, None)
        self.rmtree(path)

    def cut_power(self, is_lost: Callable[[str], bool]) -> None:
        """Unsynced files are empty; a new name that was not synced is lost, or the old one back, where *is_lost*."""
        for file in (path for path in self.root.rglob("*") if path.is_file()):
            if file.stat().st_ino not in self.synced_files:
                os.truncate(file, 0)
        self.lose_names(self.root, is_lost)

    def lose_names(self, folder: Path, is_lost: Callable[[str], bool]) -> None:
        known = self.synced_names.get(folder.stat().st_ino, {})
        for path in sorted(folder.iterdir()):
            old_name = known.get(path.stat().st_ino)
            if path.is_dir():
                self.lose_names(path, is_lost)
            if old_name == path.name or not is_lost(path.name):
                continue
            if old_name is not None and not (folder / old_name).exists():
                path.rename(folder / old_name)
            elif old_name is None:
                self.rmtree(path) if path.is_dir() else path.unlink()


STOPS: dict[str, Callable[[str], bool] | None] = {
    "kill": None,
    "power cut, all names are on disk": lambda name: False,
    "power cut, no name is": lambda name: True,
    "power cut, the removal of the old is": lambda name: not name.endswith(".deleted"),
    "power cut, all but that is": lambda name: name.endswith(".deleted"),
}


def nothing(folder: Path) -> None:
    folder.parent.mkdir()


def two_and_left_overs(folder: Path) -> None:
    write(folder, 1)
    write(folder, 2)
    for left_over in ("step-000001.deleted", "step-000003.part", "step-000008.part"):
        shutil.copytree(folder / "step-000002", folder / left_over)
        (folder / left_over / "manifest.json").unlink()
        (folder / left_over / "rank-1.safetensors").unlink()


def whole_in_its_place(folder: Path) -> None:
    write(folder, 2)
    write(folder, 3)


def damaged_in_its_place(folder: Path) -> None:
    whole_in_its_place(folder)
    flip_byte(folder / "step-000003" / "rank-1.safetensors", -1)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    ("before", "newest_before"),
    [(nothing, None), (two_and_left_overs, 2), (whole_in_its_place, 2), (damaged_in_its_place, 2)],
)
def test_whatever_call_is_the_last_the_newest_is_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[Path], None],
    newest_before: int | None,
    stop: str,
):
    """Version 3 is written and stopped at each call in turn, then the next run goes on from what is there."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # what it would do, `Disk` plays
    before(tmp_path / "before" / "checkpoints")
    calls, _ = stop_at(tmp_path, stop, None, False)
    folder = tmp_path / "run" / "checkpoints"
    assert find_whole(folder)[0] == open_checkpoint(folder / "step-000003")
    assert names(folder) == ["step-000003"]
    moments = [(number, False) for number in range(len(calls))]
    moments += [(number, True) for number, name in enumerate(calls) if name in ("rmtree", "save_file")]
    for number, halfway in moments:
        where = f"at call {number} ({calls[number]}), halfway: {halfway}"
        was_stopped = stop_at(tmp_path, stop, number, halfway)[1]
        assert was_stopped, where
        newest, _ = find_whole(folder)
        assert (newest.version if newest else None) in (newest_before, 3), where
        if newest:
            assert_holds_its_version(newest)
        for path in folder.glob("step-??????"):  # whatever has a final name, but the one that was damaged before
            if not (before is damaged_in_its_place and path.name == "step-000003" and newest and newest.version == 2):
                assert_holds_its_version(open_checkpoint(path))
        version = newest.version + 1 if newest else 1
        write(folder, version, keep=1)
        assert names(folder) == [f"step-{version:06d}"], where
        assert_holds_its_version(open_checkpoint(folder / f"step-{version:06d}"))


def stop_at(tmp_path: Path, stop: str, number: int | None, halfway: bool) -> tuple[Sequence[str], bool]:
    """Write version 3 in a copy of `before`, up to call *number*. Returns the calls, and whether it was stopped."""
    root = tmp_path / "run"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(tmp_path / "before", root)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, root, number, halfway)
        try:
            write(root / "checkpoints", 3, keep=1)
            was_stopped = False
        except Stopped:
            was_stopped = True
    if is_lost := STOPS[stop]:
        disk.cut_power(is_lost)
    return disk.calls, was_stopped


def test_a_kill_at_any_moment_leaves_the_newest_whole(tmp_path: Path):
    """And no older than the last that was committed. The next writer goes on from it."""
    size = 300_000  # 1.8 MB a rank
    rng = random.Random(0)
    command = [sys.executable, checkpoint_process.__file__, str(tmp_path), str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        committed = 0
        for _ in range(20):
            process.stdin.write("go\n")
            process.stdin.flush()
            writer = int(process.stdout.readline())
            for _ in range(rng.randrange(3)):
                committed = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.1))
            os.kill(writer, signal.SIGKILL)
            while not (line := process.stdout.readline()).startswith("dead"):
                committed = int(line)
            assert line == f"dead {-signal.SIGKILL}\n"
            newest, _ = find_newest(tmp_path)
            if newest is None:
                assert committed == 0
                continue
            assert newest.version >= committed
            assert_holds_its_version(newest, size)
    assert committed > 20


def test_the_manifest_says_what_is_there(tmp_path: Path):
    """The layout is a promise to whoever looks with other tools."""
    write(tmp_path, 12)
    manifest = json.loads((tmp_path / "step-000012" / "manifest.json").read_text())
    assert {name: manifest[name] for name in ("format", "version", "world_size", "facts")} == {
        "format": 1,
        "version": 12,
        "world_size": 2,
        "facts": make_facts(12),
    }
    assert [entry["name"] for entry in manifest["files"]] == ["rank-0.safetensors", "rank-1.safetensors"]
    for rank, entry in enumerate(manifest["files"]):
        content = (tmp_path / "step-000012" / entry["name"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == subprocess.check_output(["sha256sum"], input=content).decode().split()[0]
        assert entry == json.loads((tmp_path / "step-000012" / f"rank-{rank}.json").read_text())
