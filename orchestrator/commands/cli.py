"""The command `star-r1`: what commands there are, in which order help shows them, and how a failed one ends."""

import logging
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from orchestrator.commands import data, doctor, manage, policy, report, score, study, submit, train
from orchestrator.commands.arguments import Command, Group, example
from orchestrator.config import ConfigError, RunFailed, StartFailed

EXAMPLES = """examples:
  star-r1 train deploy/runs/tiny_cpu.toml
  star-r1 train deploy/runs/tiny_cpu.toml --set loop.steps=20 --set rollout.workers=2 --out output/try
  star-r1 train deploy/runs/tiny_cpu.toml --out output/try --resume
  star-r1 data show data/tiny --out output/tiny.html
  star-r1 eval --model output/try/model --data data/tiny
  star-r1 sft deploy/runs/tiny_sft.toml
  star-r1 study deploy/runs/study.toml
  ray job submit --working-dir . -- star-r1 train deploy/runs/tiny_cpu.toml
  star-r1 --install-completion      # the shell completes commands and options from then on"""
FIRST_DAY = "The first day"
RUNNING = "On a cluster, and while it runs"
LATER = "Later"

app = typer.Typer(cls=Group, epilog=EXAMPLES, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(
    data.app,
    name="data",
    cls=Group,
    rich_help_panel=FIRST_DAY,
    help="Make, convert, check and look at data sets.",
    epilog=example("star-r1 data show data/tiny --out output/tiny.html"),
)
for panel, name, command, lines in (
    (FIRST_DAY, "train", train.train, ["star-r1 train deploy/runs/tiny_cpu.toml --set loop.steps=20"]),
    (
        FIRST_DAY,
        "eval",
        score.evaluate,
        [
            "star-r1 eval --model output/try/model --data data/tiny",
            "star-r1 eval --model NAME --endpoint http://localhost:8000/v1 --data data/tiny",
        ],
    ),
    (
        FIRST_DAY,
        "score",
        score.score,
        [
            "star-r1 score --data data/tiny --replies replies.jsonl --json scores.json",
            "star-r1 score --task questions --data digits --replies replies.jsonl --set data.answer=solution",
        ],
    ),
    (FIRST_DAY, "sft", train.sft, ["star-r1 sft deploy/runs/tiny_sft.toml --set loop.steps=20"]),
    (
        FIRST_DAY,
        "report",
        report.report,
        [
            "star-r1 report output/run --out output/run.html",
            "star-r1 report output/run output/other",
            "star-r1 report --demo",
        ],
    ),
    (
        RUNNING,
        "submit",
        submit.submit,
        [
            "star-r1 submit run.toml --address http://HEAD:8265 --out /shared/runs/first --follow",
            "star-r1 submit run.toml --address http://HEAD:8265 --set model=/models/tiny --set data.path=/data/tiny",
        ],
    ),
    (
        RUNNING,
        "status",
        manage.status,
        ["star-r1 status output/run", "star-r1 status tiny_cpu-20261127-173000 --address http://HEAD:8265"],
    ),
    (RUNNING, "watch", report.watch, ["star-r1 watch output/run --serve", "star-r1 watch output/run"]),
    (RUNNING, "scale", manage.scale, ["star-r1 scale output/run --rollouts 4 --scorers 2", "star-r1 scale output/run"]),
    (RUNNING, "pause", manage.pause, ["star-r1 pause output/run"]),
    (RUNNING, "resume", manage.resume, ["star-r1 resume output/run"]),
    (RUNNING, "checkpoint", manage.checkpoint, ["star-r1 checkpoint output/run"]),
    (RUNNING, "stop", manage.stop, ["star-r1 stop output/run"]),
    (RUNNING, "doctor", doctor.doctor, ["star-r1 doctor output/run", "star-r1 doctor --address http://HEAD:8265"]),
    (
        LATER,
        "study",
        study.study,
        ["star-r1 study deploy/runs/study.toml --at-once 2", "star-r1 study deploy/runs/study.toml --page"],
    ),
    (LATER, "behaviour", report.behaviour, ["star-r1 behaviour output/run", "star-r1 behaviour output/run --json"]),
    (LATER, "ledger", manage.ledger, ["star-r1 ledger output/run"]),
    (LATER, "replay", train.replay, ["star-r1 replay output/run/refused/step-000012"]),
    (LATER, "pretrain", policy.pretrain, ["star-r1 pretrain deploy/runs/tiny_pretrain.toml"]),
    (LATER, "tiny-policy", policy.tiny_policy, ["star-r1 tiny-policy output/tiny --seed 1"]),
):
    app.command(name, cls=Command, rich_help_panel=panel, epilog=example(*lines))(command)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"star-r1 {_version()}")
        raise typer.Exit


def _version() -> str:
    try:
        return version("star-r1")
    except PackageNotFoundError:  # run from a checkout
        return "not installed"


@app.callback()
def star_r1(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train a vision-language model by reinforcement learning: to see what changed between two pictures, or on a task
    of your own.
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status 2 with one message for what a user can mend, 1 for a run that failed."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for package in ("records", "tasks", "tiny_policy", "rollout", "learner", "reward_service", "orchestrator"):
        logging.getLogger(package).setLevel(logging.INFO)
    set_up_ray()
    try:
        status = app(arguments, prog_name="star-r1", standalone_mode=False)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "star-r1"
        end(error.exit_code, f"{error.format_message().rstrip('.')}; see {command} --help")
    except ConfigError as error:
        end(2, str(error))
    except (StartFailed, RunFailed) as error:
        end(1, str(error))
    if status:  # Ctrl-C, where a command does not answer it itself
        sys.exit(status)


def set_up_ray() -> None:
    """Before Ray is imported, which reads its settings then.

    A Ray of the run's own listens on the loopback alone; Ray's setting for it is named after the systems on which it is
    the default. And Ray would print a paragraph for each worker that dies, which the supervisor says in a line.
    """
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")


def end(status: int, message: str) -> NoReturn:
    print(f"star-r1: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(status)


if __name__ == "__main__":
    main()
