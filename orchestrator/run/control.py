"""How a running job is told how many workers it shall have, and says how it stands: two small files in its directory.

    wanted.json    how many rollout and reward workers shall serve; written by `star-r1 scale`
    status.json    what the run has of what it shall have, and what it waits for; written by its driver, each second

Who may write in the run directory may do this; nothing else listens. Targets are absolute: to ask twice is to ask once.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.run.folders import write_whole

WANTED, STATUS, LOCK = "wanted.json", "status.json", ".scale.lock"
LOOK_S = 1.0
OLD_S = 15.0
"""A status that is older is that of a run which has ended, or hangs."""


class Wanted(BaseModel):
    """How many shall serve; None: as many as there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rollouts: int | None = Field(default=None, ge=1)
    scorers: int | None = Field(default=None, ge=1)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """At *at* (seconds since 1970), under the served *version*. *waits* says who waits for room, and what it lacks;
    *autoscale* between how few and how many rollout workers the run chooses itself.
    """

    at: float
    version: int
    rollouts: Kind
    scorers: Kind
    waits: dict[str, str] = field(default_factory=dict)
    autoscale: list[int] | None = None


def ask(folder: Path, wanted: Wanted) -> None:
    """Of the run in *folder*, from any process."""
    known = read_wanted(folder)
    both = known.model_copy(update=wanted.model_dump(exclude_none=True))
    write_whole(folder / WANTED, both.model_dump_json() + "\n")


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
    """None where no driver has written one."""
    path = folder / STATUS
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return Status(**content | {name: Kind(**content[name]) for name in ("rollouts", "scorers")})


def is_running(status: Status) -> bool:
    return time.time() - status.at < OLD_S


def write_status(folder: Path, status: Status) -> None:
    write_whole(folder / STATUS, json.dumps(asdict(status)) + "\n")


class Controlled(Protocol):
    """What of a run can be asked for, and how it stands."""

    def resize(self, wanted: Wanted) -> None: ...

    def status(self) -> Status: ...


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """*work* goes on meanwhile, and is cancelled at the end; what it raises ends what is done here."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        try:
            yield
        finally:
            task.cancel()


async def keep_control(folder: Path, run: Controlled) -> None:
    """Do what is asked for, and say how the run stands, until cancelled."""
    known = Wanted()
    while True:
        wanted = await asyncio.to_thread(read_wanted, folder)
        if wanted != known:
            run.resize(wanted)
            known = wanted
        await asyncio.to_thread(write_status, folder, run.status())
        await asyncio.sleep(LOOK_S)
