"""`star-r1 train | sft | replay`."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from orchestrator.config import ConfigError, RunFailed, StartFailed, first_of, load_run_config

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="A complete run file, see deploy/runs/.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value; may be repeated."),
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory (default: output/RUN-<date and time>).")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest whole checkpoint in --out, if there is one.")
]


Debug = Annotated[bool, typer.Option("--debug", help="Where the run fails, show the traceback.")]


def train(
    run_file: RunFile, settings: Settings = None, out: Out = None, resume: Resume = False, debug: Debug = False
) -> None:
    """Reinforcement learning as a run file says."""
    _run("train", run_file, settings or [], out, resume, debug)


def sft(
    run_file: RunFile, settings: Settings = None, out: Out = None, resume: Resume = False, debug: Debug = False
) -> None:
    """The supervised baseline STAR-SFT: learn the right answers, with the same run file, data and metrics."""
    _run("sft", run_file, settings or [], out, resume, debug)


def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder in the run directory's refused/.")],
) -> None:
    """Do a refused step again, group by group, without an update, to see where it is not finite."""
    from orchestrator.run import replay as replaying

    replaying.replay(folder, Console())


def _run(
    kind: Literal["train", "sft"], run_file: Path, settings: list[str], given: Path | None, resume: bool, debug: bool
) -> None:
    if resume and given is None:
        raise ConfigError("--resume needs --out DIR, the run directory to go on in")
    config = load_run_config(run_file, settings)
    out = given or Path("output") / f"{run_file.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    from orchestrator.run.training import run_sft, run_training  # here, so that help and config errors come at once

    run = {"train": run_training, "sft": run_sft}[kind]
    try:
        _run_to_its_end(run(config, out, Console(), resume))
    except KeyboardInterrupt:
        _say_stopped(kind, out, signal.SIGINT)
    except asyncio.CancelledError:
        _say_stopped(kind, out, signal.SIGTERM)
    except (ConfigError, StartFailed):
        raise
    except Exception as error:
        if debug:
            raise
        from orchestrator.run.failure import explain

        raise RunFailed(explain(error, kind, out, sys.argv[1:])) from error


def _run_to_its_end(coroutine: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(coroutine)
    except* (ConfigError, StartFailed) as group:
        raise first_of(group) from None


def _say_stopped(kind: str, out: Path, signum: signal.Signals) -> None:
    """One line with what to do, and the exit status of a process that the signal has ended; who was asked to end by
    `star-r1 stop` has done what was asked.
    """
    from orchestrator.run.control import read_wanted

    began = (out / "config.toml").exists()
    remedy = f"to go on, give the same command with --out {out} --resume" if began else "nothing had begun"
    print(f"star-r1: {kind} was stopped; {remedy}", file=sys.stderr)  # noqa: T201
    if not read_wanted(out).stop:
        sys.exit(128 + signum)
