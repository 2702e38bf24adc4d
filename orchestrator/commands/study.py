"""`star-r1 study`."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.arguments import to_count
from orchestrator.config import ConfigError
from orchestrator.display import say


def study(
    study_file: Annotated[
        Path, typer.Argument(metavar="STUDY.toml", help="A complete file, see deploy/runs/study.toml.")
    ],
    page: Annotated[
        bool, typer.Option("--page", help="Only make study.json and the page again, from what is there already.")
    ] = False,
    at_once: Annotated[
        int,
        typer.Option(
            parser=to_count,
            metavar="N",
            help="Run N cells side by side, each on its share of the CPU cores; a tiny policy is as fast on one core "
            "as on two.",
        ),
    ] = 1,
) -> None:
    """Train one base in several ways and with several seeds, test all alike, write a page; goes on where it stopped."""
    # Here, so that help and errors of the file come at once.
    from orchestrator.study.config import load_study_config

    config = load_study_config(study_file)
    from orchestrator.study.cells import CellFailed, Study
    from orchestrator.study.checks import load_test_pairs, prepare
    from orchestrator.study.directory import open_study_directory
    from orchestrator.study.process import run_command, share_cores
    from orchestrator.study.progress import StudyDisplay

    console, command = Console(), f"star-r1 study {study_file}"
    directory = open_study_directory(config)
    try:
        shares = share_cores(at_once)
    except ValueError as error:
        raise ConfigError(f"--at-once {at_once}: {error}") from error
    if page:
        if not directory.begun:
            raise ConfigError(f"out = {config.out}: holds no study yet; run `{command}`")
        Study(config, directory, load_test_pairs(config), command).write_again()
    else:
        directory.begin(config, prepare(config, directory, console))
        study = Study(config, directory, load_test_pairs(config), command)
        try:
            with directory.locked() as lock, StudyDisplay(console) as display:
                study.run([partial(run_command, inherited=[lock], cores=cores) for cores in shares], display)
        except CellFailed as error:
            print(f"star-r1: {error}", file=sys.stderr)  # noqa: T201
            sys.exit(1)
    say(console, f"wrote {directory.results} and {directory.page}")
