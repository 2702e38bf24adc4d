"""One owner at a time for a folder: the kernel releases a lock however its process ends."""

import fcntl
import time
from pathlib import Path
from typing import TextIO

ASK_EVERY_S = 0.2


def lock(path: Path, wait_s: float) -> TextIO:
    """The file at *path*, made if it is missing and locked until it is closed.

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
