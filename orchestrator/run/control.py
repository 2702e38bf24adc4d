"""How a running job is told what it shall do, and says how it stands: two small files in its directory.

    wanted.json    how many rollout and reward workers shall serve, whether it is paused, a checkpoint, an end
    status.json    what the run has of what it shall have, and what it waits for; written by its driver, each second

Who may write in the run directory may do this; nothing else listens. What is wanted is absolute: to ask twice is to ask
once. The counts and the pause hold for a driver that goes on with the run, too; a checkpoint and an end are asked of
the one that runs.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.loop.stop import to_its_end
from orchestrator.run.folders import lock, write_whole

logger = logging.getLogger(__name__)

WANTED, STATUS, LOCK = "wanted.json", "status.json", ".scale.lock"
ASKING = ".wanted.lock"
ASKING_S = 10.0
LOOK_S = 1.0
OLD_S = 15.0
"""A status that is older is that of a run whose driver was killed, or hangs."""


class Wanted(BaseModel):
    """What a run shall do; None: as it does. Of the workers so many shall serve; there shall be a *checkpoint* of this
    version or a later one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rollouts: int | None = Field(default=None, ge=1)
    scorers: int | None = Field(default=None, ge=1)
    paused: bool | None = None
    checkpoint: int | None = Field(default=None, ge=1)
    stop: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Of one kind of worker: how many shall serve, and the state of each by name."""

    target: int
    workers: dict[str, str]

    @property
    def serving(self) -> int:
        return sum(state == "serving" for state in self.workers.values())

    @property
    def is_settled(self) -> bool:
        """Whether as many serve as shall, and nobody comes or goes."""
        return self.serving == self.target == len(self.workers)


State = Literal["running", "paused", "stopping", "stopped", "ended", "failed"]
OVER = ("stopped", "ended", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """At *at* (seconds since 1970), under the served *version*. *waits* says who waits for room, and what it lacks;
    *autoscale* between how few and how many rollout workers the run chooses itself, *why* a run failed. Written by
    *release* of star-r1 in process *pid* on *host*, the driver of the Ray job *job*, if it is one.
    """

    at: float
    version: int
    rollouts: Kind
    scorers: Kind
    waits: dict[str, str] = field(default_factory=dict)
    autoscale: list[int] | None = None
    state: State = "running"
    why: str = ""
    release: str
    host: str
    pid: int
    job: str | None = None


class TornFile(ValueError):
    """A file of a run is not what was written; the text says what to do."""


class OtherRelease(ValueError):
    """The files of a run are those of another release; the text names both."""


def own_release() -> str:
    """Of star-r1."""
    try:
        return version("star-r1")
    except PackageNotFoundError:
        return "not installed"


def ask(folder: Path, wanted: Wanted) -> None:
    """Of the run in *folder*, from any process. Raises BlockingIOError if others ask all the time."""
    with lock(folder / ASKING, ASKING_S):
        known = read_wanted(folder)
        _write_wanted(folder, known.model_copy(update=wanted.model_dump(exclude_none=True)))


def forget(folder: Path) -> None:
    """What was asked of a driver that is gone."""
    with lock(folder / ASKING, ASKING_S):
        if (folder / WANTED).exists():
            _write_wanted(folder, read_wanted(folder).model_copy(update={"checkpoint": None, "stop": None}))


def _write_wanted(folder: Path, wanted: Wanted) -> None:
    write_whole(folder / WANTED, wanted.model_dump_json() + "\n")


def read_wanted(folder: Path) -> Wanted:
    """Nothing, where nobody has asked. Raises ValueError for a file that makes no sense."""
    path = folder / WANTED
    if not path.exists():
        return Wanted()
    try:
        return Wanted.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path}: is not what star-r1 scale writes ({error.error_count()} mistakes)") from error


def read_status(folder: Path) -> Status | None:
    """None where no driver has written one. Raises OtherRelease, TornFile."""
    path = folder / STATUS
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        written_by = content.get("release", "an older one")
        if written_by == own_release():
            return Status(**content | {name: Kind(**content[name]) for name in ("rollouts", "scorers")})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TornFile(
            f"{path}: is not whole ({type(error).__name__}: {error}); a run that goes on writes it again within "
            "seconds, and metrics.jsonl and journal.jsonl beside it do not depend on it"
        ) from error
    raise OtherRelease(
        f"{path}: is of star-r1 {written_by}, and this is {own_release()}; give the command with the star-r1 that "
        "the run was started with"
    )


def is_running(status: Status) -> bool:
    return status.state not in OVER and time.time() - status.at < OLD_S


def write_status(folder: Path, status: Status) -> None:
    write_whole(folder / STATUS, json.dumps(asdict(status)) + "\n")


class Controlled(Protocol):
    """What of a run can be asked for, and how it stands."""

    def do(self, wanted: Wanted) -> None: ...

    def status(self) -> Status: ...

    def ended(self, error: BaseException | None) -> Status:
        """How it has ended, by *error* if it did not come to its end."""
        ...


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """*work* goes on meanwhile, and is cancelled at the end; what it raises ends what is done here."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        try:
            yield
        finally:
            task.cancel()


@asynccontextmanager
async def controlled(folder: Path, run: Controlled) -> AsyncIterator[None]:
    """*run* does meanwhile what is asked for in *folder*, and says there how it stands; in the end how it ended."""
    forget(folder)
    try:
        async with beside(keep_control(folder, run)):
            yield
    except BaseException as error:
        try:
            write_status(folder, run.ended(error))
        except OSError as problem:  # on a full disk, which may be why the run ended
            logger.warning("%s could not be written (%s): it does not say that the run has ended", STATUS, problem)
        raise
    write_status(folder, run.ended(None))


async def keep_control(folder: Path, run: Controlled) -> None:
    """Do what is asked for, and say how the run stands, until cancelled."""
    known = Wanted()
    while True:
        wanted = await asyncio.to_thread(read_wanted, folder)
        if wanted != known:
            run.do(wanted)
            known = wanted
        _, stopped = await to_its_end(asyncio.to_thread(write_status, folder, run.status()))
        if stopped:  # only now: what is written in the end must be written last
            raise asyncio.CancelledError
        await asyncio.sleep(LOOK_S)
