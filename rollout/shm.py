"""What one rollout worker keeps in shared memory, and the removal of what killed workers left there.

All names of a worker begin with `star_r1_<worker id>_<random>`, those of a version's files with a name of their own
(`weight_files.py`). Beside them lies a `.lock` file that is locked as long as a process that uses them lives: the
kernel releases the lock however the process ends, so a lock that can be taken marks leftovers, also across containers.
"""

import fcntl
import os
import tempfile
import uuid
from pathlib import Path
from typing import IO

PREFIX = "star_r1_"
SHM = Path("/dev/shm")


def shm_folder() -> Path:
    """`/dev/shm`, or the temporary folder where there is none."""
    return SHM if os.access(SHM, os.W_OK) else Path(tempfile.gettempdir())


class SharedFiles:
    """The names of one live worker. Call `remove` when its engine is gone."""

    def __init__(self, worker_id: str, folder: Path | None = None) -> None:
        self.folder = folder or shm_folder()
        self.name = f"{PREFIX}{worker_id}_{uuid.uuid4().hex[:12]}"
        unlocked = self.folder / f"{self.name}.new"
        self._lock = unlocked.open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Renamed only when locked, so that nobody finds it in between and takes it for a leftover.
        unlocked.rename(self.folder / f"{self.name}.lock")

    def remove(self) -> None:
        remove_all(self.folder, self.name)
        self._lock.close()


def remove_leftovers(folder: Path | None = None) -> list[str]:
    """Remove the files of workers that no longer live; returns their names. Live workers' files are not touched."""
    folder = folder or shm_folder()
    removed = []
    for path in sorted(folder.glob(f"{PREFIX}*.lock")):
        try:
            lock = path.open("rb")
        except FileNotFoundError:  # another worker is removing the same leftovers
            continue
        with lock:
            if is_unused(lock):
                remove_all(folder, path.stem)
                removed.append(path.stem)
    return removed


def is_unused(lock: IO[bytes]) -> bool:
    """Whether no process has *lock* but the caller, which has it alone then, and has lost it otherwise."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_all(folder: Path, name: str) -> None:
    """The lock last: what lies beside none is nobody's leftover."""
    for path in sorted(folder.glob(f"{name}*"), key=lambda path: path.suffix == ".lock"):
        path.unlink(missing_ok=True)
