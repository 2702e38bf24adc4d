"""`star-r1 status | scale | pause | resume | checkpoint | stop | ledger`: what a run that goes on can be asked."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator.config import ConfigError
from orchestrator.display import say

if TYPE_CHECKING:
    from orchestrator.run.control import Status, Wanted
    from orchestrator.run.standing import Standing

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Run = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN|JOB]", help="A run directory, or a Ray job's id (default: the only run that goes on)."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The cluster's dashboard, http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS)."),
]


ASK_EVERY_S = 0.5


def status(
    run: Run = None,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say in five lines how a run stands, whether it goes on or has ended."""
    from orchestrator.run.find import find_run
    from orchestrator.run.standing import look, without_folder

    run_found = find_run(run, address)
    if isinstance(run_found, Path):
        found = look(run_found)
    elif run_found.folder is None:
        found = without_folder(run_found.job.id, run_found.job.is_over, run_found.job.message)
    else:
        raise typer.Exit(run_found.do(["status", *(["--json"] if as_json else [])], _print))
    if as_json:
        print(json.dumps(asdict(found)))  # noqa: T201
        return
    for line in found.lines():
        say(Console(), line)


def scale(
    run: Run = None,
    rollouts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="So many rollout workers shall serve.")
    ] = None,
    scorers: Annotated[int | None, typer.Option(min=1, metavar="M", help="So many reward workers shall serve.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    address: Address = None,
) -> None:
    """Have a running job use more or fewer workers, and wait until it does; without a number, say how it stands.

    Numbers are absolute: to ask twice is to ask once. Who leaves ends its answers first, or hands them on; who comes
    serves the newest version from its first answer on. Ctrl-C ends the waiting, not what was asked for.
    """
    from orchestrator.run.control import LOCK, Wanted
    from orchestrator.run.folders import lock
    from orchestrator.run.standing import describe

    numbers = {"--rollouts": rollouts, "--scorers": scorers}
    flags = [word for name, count in numbers.items() if count is not None for word in (name, str(count))]
    folder = _seen(run, address, "scale", *flags, *(["--dry-run"] if dry_run else []))
    status = _running(folder)
    console = Console()
    say(console, describe(status))
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
        raise ConfigError(f"{folder}: is being scaled by another command; wait for it, or end it") from error
    with owned:
        _ask(folder, Wanted(rollouts=rollouts, scorers=scorers))
        _wait(folder, lambda now: _has(now, rollouts, scorers), describe, console)


def _has(status: "Status", rollouts: int | None, scorers: int | None) -> bool:
    asked = [(status.rollouts, rollouts), (status.scorers, scorers)]
    return all(kind.is_settled and kind.target == count for kind, count in asked if count is not None)


def pause(run: Run = None, address: Address = None) -> None:
    """Have a run ask for no new groups; those in flight end, and are learned from if they make a step.

    Workers stay. It holds until `star-r1 resume`, also for a driver that goes on with the run meanwhile.
    """
    from orchestrator.run.control import Wanted

    folder = _seen(run, address, "pause")
    _running(folder)
    _ask(folder, Wanted(paused=True))
    now = _wait(folder, lambda now: now.state == "paused")
    say(Console(), f"paused at version {now.version}; star-r1 resume goes on")


def resume(run: Run = None, address: Address = None) -> None:
    """Have a paused run go on. (A run that has ended goes on by its own command, with --resume.)"""
    from orchestrator.run.control import Wanted

    folder = _seen(run, address, "resume")
    _running(folder)
    _ask(folder, Wanted(paused=False))
    now = _wait(folder, lambda now: now.state != "paused")
    say(Console(), f"goes on from version {now.version}")


def checkpoint(run: Run = None, address: Address = None) -> None:
    """Have a run keep its newest version, after the step in hand, and wait until it is on the disk."""
    from orchestrator.run.control import Wanted
    from orchestrator.run.folders import finished_checkpoints
    from orchestrator.run.standing import look

    folder = _seen(run, address, "checkpoint")
    _running(folder)
    step = look(folder).step
    if step == 0:
        raise ConfigError(f"{folder}: has made no step yet, and there is nothing to keep; ask again after the first")
    _ask(folder, Wanted(checkpoint=step))
    _wait(folder, lambda now: max(finished_checkpoints(folder), default=0) >= step)
    say(Console(), f"the checkpoint of step {finished_checkpoints(folder)[-1]} is in {folder}")


def stop(run: Run = None, address: Address = None) -> None:
    """End a run after the step in hand, with a checkpoint; the same command with --resume goes on."""
    from orchestrator.run.control import OVER, Wanted
    from orchestrator.run.standing import look

    folder = _seen(run, address, "stop")
    _running(folder)
    _ask(folder, Wanted(stop=True))
    now = _wait(folder, lambda now: now.state in OVER)
    ended = look(folder)
    say(Console(), f"{now.state} after step {ended.step} of {ended.steps}; the same command with --resume goes on")


def _seen(run: str | None, address: str | None, *words: str) -> Path:
    """The directory of the run. Where it is seen by its cluster alone, the command is done there, and ends here."""
    from orchestrator.run.find import find_run

    found = find_run(run, address)
    if isinstance(found, Path):
        return found
    raise typer.Exit(found.do(list(words), _print))


def _print(text: str) -> None:
    """As it is: it was laid out elsewhere."""
    print(text, end="", flush=True)  # noqa: T201


def _running(folder: Path) -> "Status":
    """Of a run that can be asked for something. Raises ConfigError."""
    from orchestrator.run.control import read_status
    from orchestrator.run.standing import look

    found = look(folder)
    status = read_status(folder) if found.goes_on else None
    if status is None:
        raise ConfigError(f"{folder}: no run goes on there: {_said(found)}")
    return status


def _said(standing: "Standing") -> str:
    remedy = "wait until it runs" if standing.state == "starting" else "the same command with --resume goes on"
    return f"{standing.state}{f', {standing.why}' if standing.why else ''}; {remedy}"


def _ask(folder: Path, wanted: "Wanted") -> None:
    from orchestrator.run.control import ask

    try:
        ask(folder, wanted)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: the run cannot be asked ({error}); you must be able to write there") from error


def _wait(
    folder: Path,
    until: "Callable[[Status], bool]",
    describe: "Callable[[Status], str] | None" = None,
    console: Console | None = None,
) -> "Status":
    """The status, when it is so; what *describe* says of it meanwhile is said when it changes."""
    from orchestrator.run.control import is_running, read_status

    said = ""
    while True:
        time.sleep(ASK_EVERY_S)
        status = read_status(folder)
        assert status is not None
        if describe and console and (line := describe(status)) != said:
            say(console, line)
            said = line
        if until(status):
            return status
        if not is_running(status):
            raise ConfigError(f"{folder}: has ended meanwhile: {status.state} {status.why}")


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
