"""`star-r1 submit`: a run as a Ray job, and what it says."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.manage import Address
from orchestrator.commands.train import RunFile, Settings
from orchestrator.display import say


def submit(
    run_file: RunFile,
    address: Address = None,
    settings: Settings = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Run directory as all nodes see it (default: ~/star-r1/JOB, which is the head's own)."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what the run says until it ends, and exit as it does.")
    ] = False,
) -> None:
    """Train as a Ray job on a cluster, which holds star-r1 and neither this folder nor its files.

    The run file travels, and a task or rules of your own in this folder. Model and data are paths on the cluster. Where
    --out holds the run already, it goes on.
    """
    from orchestrator.run import submission

    console = Console()
    job = submission.submit(run_file, settings or [], address, out, lambda text: say(console, text))
    where = f"--address {job.cluster.address}"
    say(console, f"submitted {job.name}, with {', '.join(job.taken)}; its run directory there: {job.out}")
    if not follow:
        say(console, f"to see how it stands: star-r1 status {job.name} {where}")
        say(console, f"what it says: ray job logs --follow {job.name} {where}")
        return
    try:
        ended = job.follow(lambda text: print(text, end="", flush=True))  # noqa: T201
    except KeyboardInterrupt:
        say(console, f"\n{job.name} goes on; to follow it again: ray job logs --follow {job.name} {where}")
        return
    if ended.status != "SUCCEEDED":
        print(f"star-r1: {job.name}: {ended.status}: {ended.message.splitlines()[0]}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(ended.exit_status or 1)
