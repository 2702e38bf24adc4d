"""Runs that were submitted as Ray jobs."""

import os
import re
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from orchestrator.config import ConfigError


def find_run(job: str) -> Path:
    """The run directory of the Ray job with this submission id, as its log says it. Raises ConfigError."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if address is None:
        raise ConfigError(
            f"{job}: is no run directory, and to find a Ray job RAY_ADDRESS must say where the cluster's dashboard is, "
            "for example http://127.0.0.1:8265"
        )
    try:
        log = JobSubmissionClient(address).get_job_logs(job)
    except (RuntimeError, ConnectionError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ConfigError(f"{job}: is no run directory, and no job at {address}: {cause}") from error
    found = re.findall(r"^run directory: (.+)$", log, re.MULTILINE)
    if not found:
        raise ConfigError(f"{job}: its log names no run directory; it is no run of star-r1, or has not begun")
    return Path(found[-1].strip())
