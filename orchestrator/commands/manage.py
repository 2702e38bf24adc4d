"""`star-r1 scale | ledger`: how many workers a running job has, and what became of its groups."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator.config import ConfigError
from orchestrator.display import say

if TYPE_CHECKING:
    from orchestrator.run.control import Status, Wanted

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


ASK_EVERY_S = 0.5


def scale(
    run: Annotated[
        str, typer.Argument(metavar="RUN|JOB", help="A run directory, or the id of a Ray job (at RAY_ADDRESS).")
    ],
    rollouts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="So many rollout workers shall serve.")
    ] = None,
    scorers: Annotated[int | None, typer.Option(min=1, metavar="M", help="So many reward workers shall serve.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
) -> None:
    """Have a running job use more or fewer workers, and wait until it does; without a number, say how it stands.

    Numbers are absolute: to ask twice is to ask once. Who leaves ends its answers first, or hands them on; who comes
    serves the newest version from its first answer on. Ctrl-C ends the waiting, not what was asked for.
    """
    from orchestrator.run.control import LOCK, Wanted, ask, is_running, read_status
    from orchestrator.run.find import run_directory
    from orchestrator.run.folders import lock

    folder = run_directory(run)
    status = read_status(folder)
    if status is None or not is_running(status):
        raise ConfigError(f"{run}: no run goes on in {folder}; start it, or go on with --resume and rollout.workers")
    console = Console()
    say(console, describe(status))
    wanted = Wanted(rollouts=rollouts, scorers=scorers)
    changes = [
        f"{name}: {kind.target} -> {count}"
        for name, kind, count in (("rollouts", status.rollouts, rollouts), ("scorers", status.scorers, scorers))
        if count is not None and count != kind.target
    ]
    if rollouts is not None and status.autoscale is not None:
        low, high = status.autoscale
        raise ConfigError(
            f"--rollouts {rollouts}: the run chooses by itself, from {low} to {high} (rollout.autoscale); go on with "
            "others, --resume --set rollout.autoscale.max=N"
        )
    if dry_run or not changes:
        if rollouts or scorers:
            say(console, f"would change {', '.join(changes)}" if changes else "nothing to change")
        return
    try:
        owned = lock(folder / LOCK, 0.0)
    except BlockingIOError as error:
        raise ConfigError(f"{run}: is being scaled by another command; wait for it, or end it") from error
    with owned:
        ask(folder, wanted)
        _wait(folder, run, wanted, console)


def _wait(folder: Path, run: str, wanted: "Wanted", console: Console) -> None:
    """Until it is so, saying what changes meanwhile."""
    from orchestrator.run.control import is_running, read_status

    said = ""
    while True:
        time.sleep(ASK_EVERY_S)
        status = read_status(folder)
        if status is None or not is_running(status):
            raise ConfigError(f"{run}: has ended meanwhile")
        if (line := describe(status)) != said:
            say(console, line)
            said = line
        asked = [(status.rollouts, wanted.rollouts), (status.scorers, wanted.scorers)]
        if all(kind.is_settled and kind.target == count for kind, count in asked if count is not None):
            return


def describe(status: "Status") -> str:
    """In one line."""
    kinds = {"rollouts": status.rollouts, "scorers": status.scorers}
    said = []
    for name, kind in kinds.items():
        others = Counter(state for state in kind.workers.values() if state != "serving")
        also = "".join(f", {count} {state}" for state, count in sorted(others.items()))
        said.append(f"{name} {kind.serving} of {kind.target} serve{also}")
    waits = "".join(f"; {name} waits for room: {lacks}" for name, lacks in status.waits.items())
    return f"version {status.version}: {'; '.join(said)}{waits}"


def ledger(
    folder: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Check that every admitted group of a run was trained on once, dropped or is open, and count them.

    Ends with status 1 if the ledger does not balance.
    """
    from orchestrator.run.journal import JOURNAL, DamagedJournal
    from orchestrator.run.ledger import read_ledger

    if not (folder / JOURNAL).exists():
        raise ConfigError(f"{folder}: has no {JOURNAL}; give the directory of a run that `train` made")
    try:
        found = read_ledger(folder)
    except DamagedJournal as error:
        raise ConfigError(str(error)) from error
    counts = found.counts()
    console = Console()
    if as_json:
        print(json.dumps(counts | {"faults": found.faults}))  # noqa: T201
    else:
        for name, count in counts.items():
            console.print(f"{count:>8}  {name}", highlight=False)
        for fault in found.faults:
            console.print(f"does not balance: {fault}", highlight=False, soft_wrap=True)
        console.print("the ledger balances" if not found.faults else f"{len(found.faults)} faults")
    if found.faults:
        raise typer.Exit(1)
