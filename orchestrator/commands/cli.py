"""The command `star-r1`."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from datetime import datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from orchestrator.commands.arguments import add_command, mendable, to_seed, with_epilog
from orchestrator.commands.data import add_data_commands
from orchestrator.commands.score import add_score_commands
from orchestrator.commands.study import add_study_command
from orchestrator.config import ConfigError, StartFailed, explain, first_of, load_run_config
from orchestrator.display import counting, say

DESCRIPTION = "Train a vision-language model by reinforcement learning to see what changed between two pictures."
EXAMPLES = """examples:
  star-r1 train deploy/runs/tiny_cpu.toml
  star-r1 train deploy/runs/tiny_cpu.toml --set loop.steps=20 --set rollout.workers=2 --out output/try
  star-r1 train deploy/runs/tiny_cpu.toml --out output/try --resume
  star-r1 sft deploy/runs/tiny_sft.toml
  star-r1 study deploy/runs/study.toml
  star-r1 eval --model output/try/model --data data/tiny
  star-r1 data show data/tiny --out output/tiny.html
  ray job submit --working-dir . -- star-r1 train deploy/runs/tiny_cpu.toml
"""


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status 2 with one message for what a user can mend, 1 for a run that failed."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for package in ("tvr", "rollout", "learner", "reward_service", "orchestrator"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        options.run(options)
    except ConfigError as error:
        print(f"star-r1: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except StartFailed as error:
        print(f"star-r1: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def build_parser() -> argparse.ArgumentParser:
    parser = with_epilog(argparse.ArgumentParser("star-r1", description=DESCRIPTION), EXAMPLES)
    parser.add_argument("--version", action="version", version=f"star-r1 {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    _add_run_command(
        commands,
        "train",
        "reinforcement learning as a run file says",
        "star-r1 train deploy/runs/tiny_cpu.toml --set loop.steps=20",
    )
    _add_run_command(
        commands,
        "sft",
        "the supervised baseline STAR-SFT: learn the right answers, with the same run file, data and metrics",
        "star-r1 sft deploy/runs/tiny_sft.toml --set loop.steps=20",
    )
    replay = add_command(
        commands,
        "replay",
        "do a refused step again, group by group, without an update, to see where it is not finite",
        "star-r1 replay output/run/refused/step-000012",
    )
    replay.add_argument("folder", type=Path, metavar="DIR", help="a folder in the run directory's refused/")
    replay.set_defaults(run=run_replay)

    add_data_commands(commands)
    add_score_commands(commands)
    add_study_command(commands)

    policy = add_command(
        commands,
        "tiny-policy",
        "make a freshly initialised tiny Qwen2.5-VL",
        "star-r1 tiny-policy output/tiny --seed 1",
    )
    policy.add_argument("folder", type=Path, metavar="DIR", help="folder to write; must be empty, if it is there")
    policy.add_argument("--seed", type=to_seed, default=0, metavar="S", help="seed of the weights (%(default)s)")
    policy.set_defaults(run=run_tiny_policy)

    pretrain = add_command(
        commands,
        "pretrain",
        "teach a tiny policy to see, from rendered scenes; goes on where it stopped",
        "star-r1 pretrain deploy/runs/tiny_pretrain.toml",
    )
    pretrain.add_argument("run_file", type=Path, metavar="RUN.toml", help="see deploy/runs/tiny_pretrain.toml")
    pretrain.set_defaults(run=run_pretrain)
    return parser


def _version() -> str:
    try:
        return version("star-r1")
    except PackageNotFoundError:  # run from a checkout
        return "not installed"


def _add_run_command(commands: Any, name: str, what: str, example: str) -> None:
    command = add_command(commands, name, what, example)
    command.add_argument("run_file", type=Path, metavar="RUN.toml", help="a complete run file, see deploy/runs/")
    command.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; may be repeated"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: output/RUN-<date and time>)")
    command.add_argument(
        "--resume", action="store_true", help="go on from the newest whole checkpoint in --out, if there is one"
    )
    command.set_defaults(run=run_train, kind=name)


def run_train(options: argparse.Namespace) -> None:
    if options.resume and options.out is None:
        raise ConfigError("--resume needs --out DIR, the run directory to go on in")
    config = load_run_config(options.run_file, options.set)
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    out = options.out or Path("output") / f"{options.run_file.stem}-{now}"
    from orchestrator.run.training import run_sft, run_training  # here, so that help and config errors come at once

    run = {"train": run_training, "sft": run_sft}[options.kind]
    try:
        _run(run(config, out, Console(), options.resume))
    except KeyboardInterrupt:
        _say_stopped(options, out, signal.SIGINT)
    except asyncio.CancelledError:
        _say_stopped(options, out, signal.SIGTERM)


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(coroutine)
    except* ConfigError as group:
        raise first_of(group) from None


def _say_stopped(options: argparse.Namespace, out: Path, signum: signal.Signals) -> None:
    """One line with what to do, and the exit status of a process that the signal has ended."""
    began = (out / "config.toml").exists()
    remedy = f"to go on, give the same command with --out {out} --resume" if began else "nothing had begun"
    print(f"star-r1: {options.kind} was stopped; {remedy}", file=sys.stderr)  # noqa: T201
    sys.exit(128 + signum)


def run_replay(options: argparse.Namespace) -> None:
    from orchestrator.run.replay import replay

    replay(options.folder, Console())


def run_tiny_policy(options: argparse.Namespace) -> None:
    with mendable("tiny-policy"):
        options.folder.mkdir(parents=True, exist_ok=True)
        if any(options.folder.iterdir()):
            raise ConfigError(f"tiny-policy: {options.folder} holds something; empty it, or give another folder")
        from learner.tiny_policy import make_tiny_policy  # here, so that a wrong folder is said at once

        count = make_tiny_policy(options.folder, options.seed)
    say(Console(), f"wrote a policy of {count:,} parameters to {options.folder}")


def run_pretrain(options: argparse.Namespace) -> None:
    from learner.pretrain import PretrainConfig, load_pretrain_config, pretrain

    try:
        config = load_pretrain_config(options.run_file)
    except ValidationError as error:
        raise ConfigError(explain(PretrainConfig, options.run_file, error)) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{options.run_file}: cannot be read ({error}); give the path of a run file") from error
    console = Console()
    try:
        folder = pretrain(config, partial(counting, console))
    except ValueError as error:
        raise ConfigError(f"{options.run_file}: {error}") from error
    say(console, f"the model is in {folder}")


if __name__ == "__main__":
    main()
