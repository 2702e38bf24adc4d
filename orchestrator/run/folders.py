"""What a folder of a run or a study needs: one owner at a time, and files that are replaced whole."""

import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

from learner.config import CHECKPOINTS
from records.samples import PolicyVersion

ASK_EVERY_S = 0.2


def lock(path: Path, wait_s: float) -> TextIO:
    """The file at *path*, made if it is missing and locked until it is closed, or its process ends in any way.

    Raises BlockingIOError if another process has it for *wait_s* seconds from now.
    """
    file = path.open("a")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                raise
            time.sleep(ASK_EVERY_S)


def is_locked(path: Path) -> bool:
    """Whether another process has locked the file at *path*; it is not made if it is missing."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def finished_checkpoints(folder: Path) -> list[PolicyVersion]:
    """The versions of those in the run directory *folder*."""
    found = [path.name.removeprefix("step-") for path in (folder / CHECKPOINTS).glob("step-*")]
    return sorted(PolicyVersion(int(name)) for name in found if name.isdigit())


def write_whole(path: Path, text: str) -> None:
    """Replace the file at once."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
