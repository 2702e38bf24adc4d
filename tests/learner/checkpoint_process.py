"""A learner that only writes checkpoints, for the tests to kill: FOLDER SIZE.

For each line on stdin it forks a writer and prints its process id. The writer goes on from the newest checkpoint in
FOLDER with two ranks, as fast as it can, and prints each version that is committed; when it has died, `dead` and its
exit code follow. Forking spares each of them the import of torch.
"""

import os
import sys
from pathlib import Path

import torch

from learner.checkpoint import CheckpointWriter, find_newest
from records.samples import PolicyVersion

WORLD_SIZE = 2


def make_share(version: int, rank: int, size: int) -> dict[str, torch.Tensor]:
    """What *rank* holds at *version*: about 6 *size* bytes, no two versions or ranks alike."""
    generator = torch.Generator().manual_seed(1000 * version + rank)
    weights = torch.randn(size, generator=generator)
    return {
        f"optimiser.{rank}": weights,
        f"weights.{rank}": weights.to(torch.bfloat16),
        f"step.{rank}": torch.tensor(version),
    }


def make_facts(version: int) -> dict[str, object]:
    return {"version": version, "seed": [version, -1], "learning_rate": 0.1 * version}


def make_writers(folder: Path, world_size: int, keep: int = 2, timeout_s: float = 20) -> list[CheckpointWriter]:
    return [
        CheckpointWriter(folder, keep=keep, rank=rank, world_size=world_size, timeout_s=timeout_s)
        for rank in range(world_size)
    ]


def write_for_ever(folder: Path, size: int) -> None:
    newest, _ = find_newest(folder)
    version = newest.version if newest else 0
    writers = make_writers(folder, WORLD_SIZE)
    while True:
        version = PolicyVersion(version + 1)
        for writer in writers:
            writer.begin(version)
        for rank, writer in enumerate(writers):
            writer.write(version, make_share(version, rank, size), make_facts(version))
        for writer in writers:
            writer.wait()
        sys.stdout.write(f"{version}\n")
        sys.stdout.flush()


def main() -> None:
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            write_for_ever(folder, size)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"dead {os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
