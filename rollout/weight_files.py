"""A version's buckets as files in shared memory, for engines that are processes of their own; once a node.

The files are named by what they hold. The worker that locks the name first writes them, and those that come meanwhile
wait for it; each that uses them shares the lock, and the last to let go removes them. What killed workers leave is
found by `shm.remove_leftovers`.
"""

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from records.manifest import Bucket, Manifest
from rollout.shm import PREFIX, is_unused, remove_all


@asynccontextmanager
async def files_on_node(manifest: Manifest, buckets: Sequence[Bucket], folder: Path) -> AsyncIterator[list[Path]]:
    """A file for each bucket, its tensors one after another, for as long as this lasts.

    Raises OSError if the folder has no room.
    """
    files = WeightFiles(manifest, folder)
    holding = asyncio.create_task(asyncio.to_thread(files.hold, buckets))
    try:
        await asyncio.shield(holding)
        yield files.paths
    finally:
        await asyncio.wait([holding])  # a thread cannot be cancelled
        await asyncio.to_thread(files.let_go)


class WeightFiles:
    """Those of *manifest*, whether they are there or not; calls block."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._manifest = manifest
        self._folder = folder
        # The manifest has the checksum of every tensor: the same name is the same bytes, whoever wrote them.
        digest = hashlib.blake2b(repr(manifest).encode(), digest_size=12).hexdigest()
        self._name = f"{PREFIX}version_{digest}"
        self.paths = [folder / f"{self._name}.{number}" for number in range(len(manifest.buckets))]
        self._lock: IO[bytes] | None = None

    def hold(self, buckets: Sequence[Bucket]) -> None:
        """Return when the files are there and will stay until `let_go`: written by this worker or by another.

        Raises OSError, and leaves nothing, if the folder has no room.
        """
        while self._lock is None:
            lock = self._path_of_lock.open("ab")
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)  # waits for one that writes
                if not self._are_there(lock):
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if self._is_current(lock):
                        self._write_missing(buckets)
                    fcntl.flock(lock, fcntl.LOCK_SH)
                if self._are_there(lock):  # while a lock is changed others may get it, use the files and remove them
                    self._lock = lock
            finally:
                if self._lock is None:
                    lock.close()

    def let_go(self) -> None:
        """Remove the files unless another worker uses them."""
        if self._lock is not None:
            with self._lock as lock:
                if is_unused(lock):
                    remove_all(self._folder, self._name)
            self._lock = None

    @property
    def _path_of_lock(self) -> Path:
        return self._folder / f"{self._name}.lock"

    def _are_there(self, lock: IO[bytes]) -> bool:
        return self._is_current(lock) and all(path.exists() for path in self.paths)

    def _is_current(self, lock: IO[bytes]) -> bool:
        """Whether *lock* is still the file of its name, and not one that was removed with the files."""
        try:
            return os.path.samestat(os.fstat(lock.fileno()), self._path_of_lock.stat())
        except FileNotFoundError:
            return False

    def _write_missing(self, buckets: Sequence[Bucket]) -> None:
        """With the lock to itself: a file that has its name is whole, also where another worker died while writing."""
        try:
            for path, infos, bucket in zip(self.paths, self._manifest.buckets, buckets, strict=True):
                if not path.exists():
                    unfinished = path.with_name(f"{path.name}.new")
                    with unfinished.open("wb") as file:
                        for info in infos:
                            file.write(bucket[info.name].data)
                    unfinished.rename(path)
        except BaseException as error:
            remove_all(self._folder, self._name)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                wanted = sum(array.nbytes for bucket in buckets for array in bucket.values())
                raise OSError(
                    errno.ENOSPC,
                    f"{self._folder} has no room for the {wanted} bytes of version {self._manifest.version}, "
                    f"{shutil.disk_usage(self._folder).free} are free; give it more (Docker: --shm-size)",
                ) from error
            raise
