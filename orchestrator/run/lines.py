"""A file to which lines are appended, each whole or not at all, on a disk that may be full or away for a while."""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
AWAY = (
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO, errno.ENOLINK),
)
"""What the system says while a shared file system cannot be reached."""
AWAY_S = 180.0
ASK_EVERY_S = 1.0


class Lines:
    """Appends to *path*, from any thread; *whole* bytes of it are kept, what stands behind them is cut off."""

    def __init__(self, path: Path, whole: int | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._size = os.fstat(self._file).st_size if whole is None else whole
        os.ftruncate(self._file, self._size)

    def append(self, line: bytes) -> None:
        """Have *line*, its end included, in the file: it survives the death of this process.

        Raises OSError, which names the file, if the disk is full or the file cannot be written; then nothing of *line*
        is in it.
        """
        if self._file < 0:
            raise ValueError(f"{self._path}: is a closed file")
        with self._lock:
            patiently(lambda: self._write(line), self._path)

    def sync(self) -> None:
        """Have all of it on the disk: it survives the death of the machine."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
        self._file = -1

    def _write(self, line: bytes) -> None:
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._size += len(line)


def patiently(do: Callable[[], T], path: Path) -> T:
    """What *do* returns, tried again each second while the file system of *path* is away, and that is said.

    Raises OSError if it stays away, or for anything else.
    """
    deadline = time.monotonic() + AWAY_S
    said = False
    while True:
        try:
            return do()
        except OSError as error:
            if error.errno not in AWAY or time.monotonic() > deadline:
                raise
            if not said:
                logger.warning("%s cannot be reached (%s): waiting for it, %g s at most", path, error.strerror, AWAY_S)
                said = True
            time.sleep(ASK_EVERY_S)
