"""What the checkpoints of a run take, on disk and in memory: said before the first step, or refused as too much."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from learner.config import CHECKPOINTS
from orchestrator.config import ConfigError, RunConfig


def check_checkpoint_room(config: RunConfig, folder: Path, by_host: Mapping[str, int]) -> str:
    """A line for people, of a run in *folder*; *by_host* are the bytes that one checkpoint takes in each host's memory.

    Raises ConfigError if those that lie there at a time, the one being written among them, do not fit on the disk.
    """
    size = sum(by_host.values())
    at_a_time = min(config.checkpoint.keep + 1, math.ceil(config.loop.steps / config.checkpoint.every_steps))
    replaced = sum(path.stat().st_size for path in (folder / CHECKPOINTS).rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free + replaced
    if at_a_time * size > free:
        raise ConfigError(
            f"{folder}: there are {_gb(free)} for checkpoints, and {at_a_time} at a time, {_gb(size)} each, need "
            f"{_gb(at_a_time * size)}; make room, name another folder, lower checkpoint.keep, or turn them off "
            "(checkpoint.every_steps=0)"
        )
    return (
        f"a checkpoint is {_gb(size)}, at most {at_a_time} at a time, for which {_gb(free)} are free; while one is "
        f"written it takes {_gb(max(by_host.values()))} of a node's memory"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
