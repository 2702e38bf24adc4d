"""`star-r1 submit`: a run as a Ray job, on a cluster that holds the image alone."""

import shlex
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator.commands.manage import Address
from orchestrator.commands.train import RunFile, Settings
from orchestrator.config import ConfigError, RunConfig, read_run_config
from orchestrator.display import say

if TYPE_CHECKING:
    from orchestrator.cluster.jobs import Cluster, Job

Out = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Run directory as all of the cluster's nodes see it (default: ~/star-r1/JOB, which is the head's own).",
    ),
]
Follow = Annotated[bool, typer.Option("--follow", help="Show what the run says until it ends; exit as it does.")]


def submit(
    run_file: RunFile, address: Address = None, settings: Settings = None, out: Out = None, follow: Follow = False
) -> None:
    """Train as a Ray job on a cluster. The run file travels, and rules or a task of your own in this folder.

    Model and data are paths on the cluster. With an --out that holds a run already, it goes on.
    """
    from orchestrator.cluster.jobs import NAME, RELEASE, connect
    from orchestrator.run.control import own_release
    from orchestrator.run.travel import pack

    config = read_run_config(run_file, settings or [])
    job = f"{run_file.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = shlex.quote(out) if out else f'"$HOME"/star-r1/{job}'
    if out and not Path(out).is_absolute():
        raise ConfigError(f"--out {out}: is a path on the cluster; give it as every node sees it, /...")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="star-r1-") as travels:
        taken = pack(config, run_file.name, Path.cwd(), Path(travels))
        cluster = connect(address)
        _check_room(cluster, config, console)
        cluster.submit(
            f"star-r1 train {shlex.quote(run_file.name)} --out {folder} --resume",
            job,
            {NAME: run_file.stem, RELEASE: own_release()},
            runtime_env={"working_dir": travels},
        )
    where = f"--address {cluster.address}"
    say(console, f"submitted {job}, with {', '.join(taken)}; its run directory: {out or f'~/star-r1/{job}'}")
    if not follow:
        say(console, f"star-r1 status {job} {where}      # or: ray job logs --follow {job} {where}")
        return
    try:
        ended = cluster.follow(job, lambda text: print(text, end="", flush=True))  # noqa: T201
    except KeyboardInterrupt:
        say(console, f"\n{job} goes on; to follow it again: ray job logs --follow {job} {where}")
        return
    _end(ended)


def _end(job: "Job") -> None:
    if job.status != "SUCCEEDED":
        print(f"star-r1: {job.id}: {job.status}: {job.message.splitlines()[0]}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(job.exit_status or 1)


def _check_room(cluster: "Cluster", config: RunConfig, console: Console) -> None:
    """Raise ConfigError where the cluster will never have what the run asks for; one that may grow is said to."""
    from orchestrator.cluster.placement import wanted

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
    say(console, f"{said}: the cluster has to grow first")
