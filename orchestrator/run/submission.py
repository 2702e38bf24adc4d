"""A run becomes a Ray job, on a cluster that holds the image alone."""

import re
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.cluster.jobs import NAME, RELEASE, Cluster, Job, connect
from orchestrator.cluster.placement import wanted
from orchestrator.config import ConfigError, RunConfig, read_run_config
from orchestrator.run.control import own_release
from orchestrator.run.travel import pack


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job *name* of *cluster*, whose run directory will be *out* there; *taken* went with it."""

    cluster: Cluster
    name: str
    out: str
    taken: list[str]

    def follow(self, say: Callable[[str], None]) -> Job:
        """The job, when it has ended; *say* is given what it says meanwhile."""
        return self.cluster.follow(self.name, say)


def submit(
    run_file: Path, overrides: list[str], address: str | None, out: str | None, say: Callable[[str], None]
) -> Submitted:
    """Raises ConfigError. *say* is told if the cluster has to grow first."""
    if out and not Path(out).is_absolute():
        raise ConfigError(f"--out {out}: is a path on the cluster; give it as every node sees it, /...")
    config = read_run_config(run_file, overrides)
    name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', run_file.stem)}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = shlex.quote(out) if out else f'"$HOME"/star-r1/{name}'
    with tempfile.TemporaryDirectory(prefix="star-r1-") as travels:
        taken = pack(config, run_file.name, Path.cwd(), Path(travels))
        cluster = connect(address)
        check_room(cluster, config, say)
        cluster.submit(
            f"star-r1 train {shlex.quote(run_file.name)} --out {folder} --resume",
            name,
            {NAME: run_file.stem, RELEASE: own_release()},
            runtime_env={"working_dir": travels},
        )
    return Submitted(cluster, name, out or f"~/star-r1/{name}", taken)


def check_room(cluster: Cluster, config: RunConfig, say: Callable[[str], None]) -> None:
    """Raise ConfigError where the cluster will never have what the run asks for; of one that may grow it is said."""
    total, may_grow = cluster.total()
    lacks = [
        f"{count:g} {kind}s, and its nodes have {total.get(kind, 0):g}"
        for kind, count in wanted(config).items()
        if count > total.get(kind, 0)
    ]
    if not lacks:
        return
    said = f"the run asks for {'; '.join(lacks)}"
    if not may_grow:
        raise ConfigError(
            f"--address {cluster.address}: {said}; lower rollout.workers, learner.ranks or reward_service.workers, or "
            "add nodes"
        )
    say(f"{said}: the cluster has to grow first")
