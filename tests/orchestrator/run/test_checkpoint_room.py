"""What checkpoints take is said before the first step, and refused where the disk has no room."""

import re
import shutil
from pathlib import Path

import pytest

from orchestrator.config import ConfigError, load_run_config
from orchestrator.run.checkpoint_room import check_checkpoint_room

TINY = Path("deploy/runs/tiny_cpu.toml")
BY_HOST = {"10.0.0.1": 60_000_000_000, "10.0.0.2": 40_000_000_000}  # 100 GB: 8.3 G trained weights, 12 bytes each
KEEP_2 = ("checkpoint.every_steps=20", "checkpoint.keep=2", "loop.steps=100")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has 250 GB."""
    usage = shutil._ntuple_diskusage(total=10**12, used=10**12 - 250 * 10**9, free=250 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def check(folder: Path, *overrides: str) -> str:
    return check_checkpoint_room(load_run_config(TINY, overrides), folder, BY_HOST)


def test_what_does_not_fit_is_refused_with_folder_sizes_and_remedy(free: None, tmp_path: Path) -> None:
    # 2 that are kept and the one being written are 300 GB.
    says = (
        f"{tmp_path}: there are 250.00 GB for checkpoints, and 3 at a time, 100.00 GB each, need 300.00 GB; make room, "
        "name another folder, lower checkpoint.keep, or turn them off (checkpoint.every_steps=0)"
    )
    with pytest.raises(ConfigError, match=re.escape(says)):
        check(tmp_path, *KEEP_2)


def test_what_fits_is_said_with_the_memory_of_the_node_that_needs_the_most(free: None, tmp_path: Path) -> None:
    assert check(tmp_path, *KEEP_2, "checkpoint.keep=1") == (
        "a checkpoint is 100.00 GB, at most 2 at a time, for which 250.00 GB are free; while one is written it takes "
        "60.00 GB of a node's memory"
    )


@pytest.mark.parametrize(("steps", "number"), [(20, 1), (21, 2), (40, 2)])
def test_a_short_run_needs_room_for_as_many_as_it_makes(free: None, tmp_path: Path, steps: int, number: int) -> None:
    assert f"at most {number} at a time" in check(tmp_path, *KEEP_2, f"loop.steps={steps}")


def test_checkpoints_that_will_be_replaced_are_room(free: None, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-000020"
    folder.mkdir(parents=True)
    with (folder / "rank-0.safetensors").open("wb") as file:
        file.truncate(50_000_000_000)  # a hole, which takes no room
    assert "for which 300.00 GB are free" in check(tmp_path, *KEEP_2)
