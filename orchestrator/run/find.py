"""From what a user names to a run: its directory, where that is seen, or its job."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config import ConfigError
from orchestrator.run.control import OtherRelease, TornFile, own_release, read_status

if TYPE_CHECKING:
    from orchestrator.cluster.jobs import Cluster, Job


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A run that only its cluster sees, in *folder* there; None while it has not said where."""

    cluster: "Cluster"
    job: "Job"
    folder: Path | None

    def do(self, words: list[str], say: Callable[[str], None]) -> int:
        """The command *words* there, with the run directory behind its name. Returns its exit status.

        Raises ConfigError.
        """
        from orchestrator.cluster.jobs import command_line

        what, *others = words
        return self.cluster.do_there(self.job, command_line(what, self.begun(), *others), what, say)

    def begun(self) -> Path:
        """Its directory. Raises ConfigError if it has none."""
        if self.folder is None:
            ended = f"it has ended, {self.job.status}: {self.job.message}" if self.job.is_over else "it is starting"
            raise ConfigError(f"{self.job.id}: its log names no run directory; {ended}; ray job logs {self.job.id}")
        return self.folder


def find_run(named: str | None, address: str | None) -> Path | Elsewhere:
    """The run in this folder, or of this job; without a name the only one that goes on at *address*.

    Raises ConfigError.
    """
    if named is not None and Path(named).is_dir():
        return Path(named)
    from orchestrator.cluster.jobs import RELEASE, connect, folder_of  # a folder needs no Ray

    try:
        cluster = connect(address)
    except ConfigError as error:
        if named is None:
            raise
        raise ConfigError(f"{named}: is no run directory here, and no job that can be asked for: {error}") from error
    job = cluster.only_run() if named is None else cluster.job(named)
    if not job.is_run:
        raise ConfigError(f"{job.id}: is no run of star-r1, but {job.entrypoint}")
    began_with = job.metadata.get(RELEASE, own_release())
    if began_with != own_release():
        raise ConfigError(
            f"{job.id}: is a job of star-r1 {began_with}, and this is {own_release()}; give the command with that one"
        )
    folder = folder_of(cluster, job)
    return folder if folder is not None and _is_of(job, folder) else Elsewhere(cluster, job, folder)


def _is_of(job: "Job", folder: Path) -> bool:
    """Whether *folder*, as this machine sees it, is that of the job."""
    try:
        status = read_status(folder)
    except (OtherRelease, TornFile, OSError):
        return False
    return status is not None and status.job == job.id
