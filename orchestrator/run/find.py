"""From what a user names to the directory of a run."""

from pathlib import Path

from orchestrator.cluster.jobs import find_run
from orchestrator.config import ConfigError


def run_directory(run: str) -> Path:
    """A folder as it is; that of a Ray job as the job's log says. Raises ConfigError."""
    if (Path(run) / "config.toml").exists():
        return Path(run)
    folder = find_run(run)
    if not (folder / "config.toml").exists():
        raise ConfigError(
            f"{run}: its run directory {folder} is not seen from here; give the command where it is, for example "
            f"ray job submit -- star-r1 scale {folder} ..."
        )
    return folder
