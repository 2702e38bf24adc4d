"""Rendered data sets: reproducible, resumable, and every object in sight."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tasks.tvr.data import dataset, rendered
from tasks.tvr.data.config import DataConfig
from tasks.tvr.language.scene import apply
from tasks.tvr.pictures.render import INDEX_MAP_SIZE, index_map
from tasks.tvr.pictures.sample_scenes import MIN_PIXELS


def config(path: Path, **changes) -> DataConfig:
    return DataConfig(**{"path": path, "train": 18, "test": 3, "size": (32, 24), "spp": 1, "workers": 1, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered.ensure(config(tmp_path_factory.mktemp("data") / "pairs"))


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_pictures_and_files_do_not_depend_on_the_number_of_workers(folder, tmp_path):
    rendered.make(config(tmp_path / "pairs", workers=2))
    assert all_bytes(tmp_path / "pairs") == all_bytes(folder)


def test_another_seed_gives_other_pairs(folder, tmp_path):
    rendered.make(config(tmp_path / "pairs", train=1, test=1, seed=1))
    first, other = (dataset.load(path, "train")[0].gold for path in (folder, tmp_path / "pairs"))
    assert first.scene != other.scene


def test_a_killed_run_goes_on_where_it_stopped_and_gives_the_same_bytes(folder, tmp_path):
    counts, look = ["--train", "18", "--test", "3"], ["--size", "32x24", "--spp", "1", "--workers", "2"]
    star_r1 = [sys.executable, "-m", "orchestrator.commands.cli"]
    command = [*star_r1, "data", "make", "--out", str(tmp_path / "pairs"), *counts, *look]
    unfinished = tmp_path / "pairs.unfinished"
    running = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while not list(unfinished.glob("*.arrow")):
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)  # the file system gives no event that would be simpler
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "pairs").exists()

    whole = {file: file.stat().st_mtime_ns for file in unfinished.glob("*.arrow")}
    kept: list[bool] = []

    def note(done: int, total: int) -> None:
        kept.append(all(file.stat().st_mtime_ns == time_ns for file, time_ns in whole.items()))

    rendered.make(config(tmp_path / "pairs"), note)
    assert all(kept)
    assert all_bytes(tmp_path / "pairs") == all_bytes(folder)
    assert [file.name for file in tmp_path.iterdir()] == ["pairs"]


@pytest.fixture
def second_waits(monkeypatch) -> threading.Event:
    """Set when somebody waits for the lock of another."""
    waits, flock = threading.Event(), fcntl.flock

    def watched(file, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            waits.set()
        flock(file, operation)

    monkeypatch.setattr(dataset.fcntl, "flock", watched)
    return waits


def at_once(first: Callable[..., object], second: Callable[[], object], second_waits: threading.Event) -> None:
    """Begin *second* when *first* has done some pairs; *first* goes on when *second* waits for it."""
    begun = threading.Event()

    def progress(done: int, total: int) -> None:
        begun.set()
        assert second_waits.wait(60), "the second did not wait"

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(first, progress)]
        assert begun.wait(60)
        both.append(pool.submit(second))
        for ended in both:
            ended.result()


def test_of_two_that_need_a_folder_one_renders_it_and_the_other_waits(folder, tmp_path, monkeypatch, second_waits):
    rendered_blocks, render_block = [], rendered._render_block
    monkeypatch.setattr(rendered, "_render_block", lambda *task: rendered_blocks.append(task) or render_block(*task))
    wanted = config(tmp_path / "pairs")
    at_once(lambda progress: rendered.ensure(wanted, progress), lambda: rendered.ensure(wanted), second_waits)
    assert len(rendered_blocks) == 4  # 8 + 8 + 2 training pairs, 3 others
    assert all_bytes(tmp_path / "pairs") == all_bytes(folder)
    assert [file.name for file in tmp_path.iterdir()] == ["pairs"]


def test_who_waited_for_a_folder_of_another_recipe_is_told(tmp_path, second_waits):
    def second() -> None:
        with pytest.raises(ValueError, match="rendered with seed = 0, not seed = 1 as asked now"):
            rendered.ensure(config(tmp_path / "pairs", seed=1))

    at_once(lambda progress: rendered.make(config(tmp_path / "pairs"), progress), second, second_waits)


def test_who_waited_to_make_the_same_folder_is_told_that_it_is_there(tmp_path, second_waits):
    def second() -> None:
        with pytest.raises(FileExistsError, match="was written by another command meanwhile"):
            rendered.make(config(tmp_path / "pairs"))

    at_once(lambda progress: rendered.make(config(tmp_path / "pairs"), progress), second, second_waits)


def test_what_a_stopped_run_left_belongs_to_its_recipe(tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rendered.make(config(tmp_path / "pairs"), stop)
    assert not (tmp_path / "pairs").exists()
    with pytest.raises(
        ValueError, match=r"unfinished holds .* seed = 0, not seed = 1 as asked now; give the arguments"
    ):
        rendered.make(config(tmp_path / "pairs", seed=1))


def test_progress_counts_all_pairs(tmp_path):
    seen: list[tuple[int, int]] = []
    rendered.make(config(tmp_path / "pairs", train=9, test=1), lambda done, total: seen.append((done, total)))
    assert seen == [(8, 10), (9, 10), (10, 10)]


def test_a_folder_there_is_not_rendered_again(folder):
    before = (folder / "recipe.json").stat().st_mtime_ns
    assert rendered.ensure(config(folder, workers=2)) == folder
    assert (folder / "recipe.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="remove it"):
        rendered.make(config(folder))


def test_a_folder_that_was_not_rendered_is_taken_as_it_is(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "recipe.json").write_text('{"source": "TRANCE"}')
    assert rendered.ensure(config(tmp_path / "other", train=99)) == tmp_path / "other"


def test_another_recipe_is_an_error_that_names_both_and_the_remedy(folder):
    with pytest.raises(ValueError, match=r"rendered with train = 18, not train = 19 as asked now; change the run file"):
        rendered.ensure(config(folder, train=19))


def test_every_object_is_visible_in_both_pictures_of_a_pair(tmp_path):
    rendered.make(config(tmp_path / "pairs", train=9, test=1, objects=(5, 10), changes=(1, 4)))
    for prompt in dataset.load(tmp_path / "pairs", "train"):
        gold = prompt.gold
        for state, view in ((gold.scene, "center"), (apply(gold.scene, gold.transformations), gold.view)):
            pixels = np.bincount(index_map(state, view).ravel() + 1, minlength=len(state) + 1)[1:]
            assert pixels.min() >= MIN_PIXELS * INDEX_MAP_SIZE[0] * INDEX_MAP_SIZE[1]
