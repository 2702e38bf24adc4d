"""Checkpoints on disk: written by all learner ranks while they go on learning; whole, or not there at all.

    checkpoints/step-000012/     named by policy version
      rank-0.safetensors ...     the tensors of one rank; every name is in one rank's file only
      rank-0.json ...            the size and SHA-256 of that file; once it is there, that rank has finished
      manifest.json              the same of all ranks, and the caller's facts

All of this is written in `step-000012.part`. Rank 0 renames the folder when every byte is on disk, so one with its
final name is whole unless the disk has damaged it since, which its checksums show. A folder is renamed to
`step-000012.deleted` before it is emptied. The ranks need a file system that all of them see, and nothing else.

To find a checkpoint is cheap: manifest and sizes. Its bytes are hashed by `Checkpoint.damage`, by all readers together.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open

from records.samples import PolicyVersion

FORMAT = 1
MANIFEST = "manifest.json"
PART, DELETED = ".part", ".deleted"

_FOLDER = re.compile(r"step-(\d{6,})(\.part)?")
_POLL_S = 0.05
_FLOAT_BYTES = 4


class CheckpointWriter:
    """Writes the share of *rank* of *world_size*; one writer on each rank.

    *keep* is how many checkpoints stay; those of later versions than the one just written do not count and are left
    alone. Rank 0 gives the others *timeout_s* seconds after its own file is written. Whatever goes wrong in the
    background is raised by the next call, and by every one after it.
    """

    def __init__(self, folder: Path, *, keep: int, rank: int, world_size: int, timeout_s: float) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; the checkpoint just written must stay, so it is at least 1")
        self._folder = folder
        self._keep = keep
        self._rank = rank
        self._world_size = world_size
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def begin(self, version: PolicyVersion) -> None:
        """Rank 0 removes what unfinished writes have left, of any version, and makes the folder.

        All ranks must have returned before any of them calls `write`. Waits for an earlier write.
        """
        self.wait()
        if self._rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            _fsync(self._folder.parent)
            for suffix in (PART, DELETED):
                _remove_all(self._folder, suffix)
            self._path(version, PART).mkdir()

    def write(self, version: PolicyVersion, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Start to write *tensors*: contiguous, on the host, and nobody's to change before the next `wait` returns.

        *facts* is anything that JSON can hold, and is read back as JSON gives it; rank 0's are stored. Waits for an
        earlier write.
        """
        self.wait()
        facts = json.loads(json.dumps(facts))
        self._writing = self._thread.submit(self._write, version, dict(tensors), facts)

    def wait(self) -> None:
        """Return when the last write is done: on rank 0, when the checkpoint is there under its final name."""
        if self._writing is not None:
            self._writing.result()

    def _write(self, version: PolicyVersion, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        part = self._path(version, PART)
        file = part / f"rank-{self._rank}.safetensors"
        safetensors.torch.save_file(tensors, file)
        _fsync(file)
        entry = {"name": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file)}
        # The last act of this rank: from here on rank 0 may rename the folder.
        _write_json(file.with_suffix(".json"), entry)
        if self._rank == 0:
            manifest = {
                "format": FORMAT,
                "version": version,
                "world_size": self._world_size,
                "facts": facts,
                "files": self._await_ranks(part),
            }
            _write_json(part / MANIFEST, manifest | {"sha256": _seal(manifest)})
            self._commit(version)
            self._remove_old(version)

    def _await_ranks(self, part: Path) -> list[dict[str, Any]]:
        deadline = time.monotonic() + self._timeout_s
        entries = [part / f"rank-{rank}.json" for rank in range(self._world_size)]
        while missing := [entry.stem for entry in entries if not entry.exists()]:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{part.name}: {', '.join(missing)} not written within {self._timeout_s} s; "
                    "look for what stopped there, or allow more time"
                )
            time.sleep(_POLL_S)
        return [json.loads(entry.read_text()) for entry in entries]

    def _commit(self, version: PolicyVersion) -> None:
        _fsync(self._path(version, PART))
        if self._path(version).exists():  # damaged, or of a run that was given up
            os.rename(self._path(version), self._path(version, DELETED))
        os.rename(self._path(version, PART), self._path(version))
        _fsync(self._folder)

    def _remove_old(self, version: PolicyVersion) -> None:
        finished = sorted((found, path) for found, final, path in _steps(self._folder) if final and found <= version)
        for _, old in finished[: -self._keep]:
            os.rename(old, old.with_name(old.name + DELETED))
        # Before the first file goes: after a power cut the old name could be back, with what is left in it.
        _fsync(self._folder)
        _remove_all(self._folder, DELETED)

    def _path(self, version: PolicyVersion, suffix: str = "") -> Path:
        return self._folder / f"step-{version:06d}{suffix}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFile:
    """What the manifest says of one rank's file."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint, whole unless `damage` says otherwise. Plain data: one process finds it, the others are sent it."""

    version: PolicyVersion
    path: Path
    world_size: int  # ranks that wrote it; any number may read
    facts: dict[str, Any]
    files: tuple[RankFile, ...]

    def damage(self, rank: int, world_size: int) -> tuple[str, ...]:
        """Read every byte of this rank's share, every so manieth file. Returns what is wrong, naming the file."""
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda file: _wrong_checksum(self.path / file.name, file), self.files[rank::world_size])
            return tuple(reason for reason in found if reason)

    def names(self) -> tuple[str, ...]:
        """Of all tensors. Raises ValueError if two files hold the same name."""
        return tuple(self._places())

    def read(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors by name, one at a time. Raises ValueError if two files hold the same name.

        A tensor is a view of its file: copy it before the checkpoint may be deleted.
        """
        for name, place in self._places().items():
            with safe_open(place.file, framework="pt") as content:
                yield name, content.get_tensor(name)

    def parts(self, wanted: Iterable[tuple[str, int, int]]) -> Iterator[torch.Tensor]:
        """Of each (name, first, last) the numbers *first* up to *last* of the flat tensor, which is float32.

        Nothing else is read. A part is a view of its file, whose pages go when it goes. What is behind the end is left
        out.
        """
        places = self._places()
        for name, first, last in wanted:
            place = places[name]
            begin, end = (min(place.begin + number * _FLOAT_BYTES, place.end) for number in (first, last))
            # Mapped, not read into a buffer: a large one that is freed makes malloc keep more of all that comes after.
            mapped = np.memmap(place.file, np.float32, "c", offset=begin, shape=((end - begin) // _FLOAT_BYTES,))
            yield torch.from_numpy(mapped)

    def _places(self) -> dict[str, "_Place"]:
        """By name of the tensor."""
        places: dict[str, _Place] = {}
        for file in self.files:
            path = self.path / file.name
            for name, place in _read_header(path):
                if name in places:
                    raise ValueError(f"{self.path.name}/{file.name}: {name!r} is in another rank's file as well")
                places[name] = place
        return places


@dataclass(frozen=True, slots=True)
class _Place:
    """The bytes of a tensor in its file."""

    file: Path
    begin: int
    end: int


def _read_header(path: Path) -> Iterator[tuple[str, _Place]]:
    """The format of safetensors: the length of the header, the header, and behind it the tensors as they are."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            yield name, _Place(path, begin, end)


@dataclass(frozen=True, kw_only=True, slots=True)
class Torn:
    """A checkpoint that was passed over; *reason* names the file and says what is wrong."""

    version: PolicyVersion
    reason: str


def find_newest(folder: Path, before: PolicyVersion | None = None) -> tuple[Checkpoint | None, list[Torn]]:
    """The newest checkpoint in *folder*, of a version *before* that, and every newer torn one, newest first.

    None without any. Its bytes are still to be read, by `Checkpoint.damage`.
    """
    torn: list[Torn] = []
    for version, final, path in sorted(_steps(folder), reverse=True):
        if before is not None and version >= before:
            continue
        try:
            if not final:
                raise ValueError(f"{path.name}: was not finished")
            return open_checkpoint(path), torn
        except ValueError as error:
            torn.append(Torn(version=version, reason=str(error)))
    return None, torn


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at *path*. Raises ValueError, naming the file, if one is missing or has another size."""
    manifest = _read_manifest(path / MANIFEST)
    files = tuple(RankFile(**entry) for entry in manifest["files"])
    for file in files:
        _check_size(path / file.name, file)
    return Checkpoint(
        version=PolicyVersion(manifest["version"]),
        path=path,
        world_size=manifest["world_size"],
        facts=manifest["facts"],
        files=files,
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    where = f"{path.parent.name}/{path.name}"
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{where}: is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{where}: is not a manifest of format {FORMAT}")
    if manifest.pop("sha256", None) != _seal(manifest):
        raise ValueError(f"{where}: its checksum is not that of its content")
    return manifest


def _check_size(path: Path, file: RankFile) -> None:
    where = f"{path.parent.name}/{path.name}"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error.strerror}") from error
    if size != file.bytes:
        raise ValueError(f"{where}: has {size} bytes, the manifest says {file.bytes}")


def _wrong_checksum(path: Path, file: RankFile) -> str | None:
    where = f"{path.parent.name}/{path.name}"
    try:
        checksum = _sha256(path)
    except OSError as error:
        return f"{where}: cannot be read: {error.strerror}"
    return None if checksum == file.sha256 else f"{where}: its checksum is {checksum}, the manifest says {file.sha256}"


def _steps(folder: Path) -> list[tuple[PolicyVersion, bool, Path]]:
    """Version, whether under its final name, and path of every checkpoint begun in *folder*."""
    names = os.listdir(folder) if folder.exists() else []
    matches = [match for match in map(_FOLDER.fullmatch, names) if match]
    return [(PolicyVersion(int(match[1])), match[2] is None, folder / match[0]) for match in matches]


def _remove_all(folder: Path, suffix: str) -> None:
    for path in folder.glob(f"step-*{suffix}"):
        shutil.rmtree(path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """At once: *path* is never there half written."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2))
    _fsync(temporary)
    os.replace(temporary, path)


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    """Return when *path*, a file or the names in a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
