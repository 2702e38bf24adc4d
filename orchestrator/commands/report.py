"""`star-r1 report | watch | behaviour`: a run as a page, live too, and how its replies come to their answers."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.commands.arguments import mendable
from orchestrator.config import ConfigError
from orchestrator.display import say

if TYPE_CHECKING:
    from orchestrator.report.behaviour import Bin
    from orchestrator.run.page import LivePages

DEMO = Path(__file__).parents[2] / "deploy" / "demo" / "tiny_run"
PORT = 8400
LOOK_S = 2.0
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def report(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN ...", help="Run directories, side by side.")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page.")] = Path("report.html"),
    demo: Annotated[bool, typer.Option("--demo", help="Of the small run that comes with the checkout.")] = False,
) -> None:
    """Write one HTML page that shows a run, or several: who worked, what was learned, and what was sampled.

    The page holds everything itself and needs no server. Each run leaves its own, report.html, at its end.
    """
    from orchestrator.run.page import write_page

    if bool(runs) == demo:
        raise ConfigError("report: give one or more run directories, or --demo alone")
    if demo and not DEMO.exists():
        raise ConfigError(f"--demo: {DEMO} is not there, for it comes with a checkout only; give a run directory")
    console = Console()
    with mendable("report"):
        notes = write_page(runs or [DEMO], out)
    for note in notes:
        say(console, note)
    say(console, f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB")


def watch(
    run: RunFolder,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the page of `report`, on this machine alone.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="0: any that is free.")] = PORT,
) -> None:
    """Say how a run stands, each time that changes; with --serve on its page, which follows the run. Ctrl-C ends it."""
    from orchestrator.run.page import LivePages

    pages = LivePages([run])
    pages.status()  # what is no run is said at once
    console = Console()
    try:
        if serve:
            _serve(pages, port, console)
        else:
            _say(pages, console)
    except KeyboardInterrupt:
        return


def _serve(pages: "LivePages", port: int, console: Console) -> None:
    from orchestrator.report.serve import PageServer

    try:
        server = PageServer(pages, port)
    except OSError as error:
        raise ConfigError(f"--port {port}: {error.strerror}; give another one, or 0 for any that is free") from error
    with server:
        say(console, f"the page is at {server.url}; Ctrl-C ends it")
        server.serve_forever()


def _say(pages: "LivePages", console: Console) -> None:
    """Until the run has ended."""
    said = ""
    while True:
        stamp, (status,) = pages.stamp(), pages.status()
        now = f"{stamp} {status['running']} {status['alarms']} {status['hints']}"
        if now != said:
            for line in (status["headline"], *(f"  {text}" for text in (*status["alarms"], *status["hints"]))):
                say(console, line)
            said = now
        if not status["running"]:
            return
        time.sleep(LOOK_S)


def behaviour(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """How sampled replies come to their answers, by version and view: as the run's task looks at them.

    For TVR: the share that goes through the objects one by one, objects named, triplets predicted; and the length.
    """
    from orchestrator.report.behaviour import REPLY_COLUMNS, look
    from orchestrator.report.behaviour import behaviour as binned
    from orchestrator.run.page import read_run

    found = read_run(run, most_samples=None, columns=REPLY_COLUMNS)
    bins = binned(look(found))
    if not bins:
        why = " ".join(found.notes) or "its task says nothing of behaviour"
        raise ConfigError(f"{run}: there is no reply to look at; {why}")
    if as_json:
        print(json.dumps([it.to_json() for it in bins]))  # noqa: T201
    else:
        Console().print(_table(bins))


def _table(bins: list["Bin"]) -> Table:
    table = Table(title="Sampled replies by the version that sampled them")
    for column in ("versions", "view", "replies", *bins[0].means):
        table.add_column(column, justify="left" if column in ("versions", "view") else "right")
    for it in bins:
        for place, (view, count) in enumerate(it.samples.items()):
            versions = "" if place else f"{it.first}-{it.last}" if it.last > it.first else str(it.first)
            table.add_row(versions, view, f"{count:,}", *(f"{means[view]:.2f}" for means in it.means.values()))
    return table
