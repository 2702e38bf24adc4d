"""The command `star-r1`."""

import argparse
import asyncio
import logging
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from orchestrator.config import ConfigError, load_run_config

DESCRIPTION = "Train a vision-language model by reinforcement learning to see what changed between two pictures."
EXAMPLES = """examples:
  star-r1 train deploy/runs/tiny_cpu.toml
  star-r1 train deploy/runs/tiny_cpu.toml --set loop.steps=20 --set rollout.workers=2 --out output/try
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


def build_parser() -> argparse.ArgumentParser:
    parser = _parser(argparse.ArgumentParser("star-r1", description=DESCRIPTION), EXAMPLES)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = _command(
        commands, "train", "run GRPO as a run file says", "star-r1 train deploy/runs/tiny_cpu.toml --set loop.steps=20"
    )
    train.add_argument("run_file", type=Path, metavar="RUN.toml", help="a complete run file, see deploy/runs/")
    train.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; may be repeated"
    )
    train.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: output/RUN-<date and time>)")
    train.set_defaults(run=run_train)

    data = _command(commands, "data", "make data sets", "star-r1 data make --out data/small --train 100 --test 20")
    data_commands = data.add_subparsers(metavar="COMMAND", required=True)
    make = _command(
        data_commands, "make", "render a data set", "star-r1 data make --out data/small --train 100 --test 20 --seed 7"
    )
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")
    make.add_argument("--settings", default="basic,event,view", metavar="A,B", help="default: %(default)s")
    make.add_argument("--train", type=int, required=True, metavar="N", help="training pairs")
    make.add_argument("--test", type=int, required=True, metavar="N", help="held-out pairs")
    make.add_argument("--objects", type=_range, default=(2, 3), metavar="MIN-MAX", help="objects a scene (2-3)")
    make.add_argument("--changes", type=_range, default=(1, 2), metavar="MIN-MAX", help="changes a pair (1-2)")
    make.add_argument("--size", type=_size, default=(160, 120), metavar="WxH", help="picture size (160x120)")
    make.add_argument("--spp", type=int, default=16, metavar="K", help="samples per pixel (%(default)s)")
    make.add_argument("--seed", type=int, default=0, metavar="S", help="seed of everything (%(default)s)")
    make.add_argument("--workers", type=int, default=0, metavar="W", help="rendering processes; 0: one per core")
    make.set_defaults(run=run_data_make)

    policy = _command(
        commands,
        "tiny-policy",
        "make a freshly initialised tiny Qwen2.5-VL",
        "star-r1 tiny-policy output/tiny --seed 1",
    )
    policy.add_argument("folder", type=Path, metavar="DIR", help="folder to write")
    policy.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the weights (%(default)s)")
    policy.set_defaults(run=run_tiny_policy)

    pretrain = _command(
        commands,
        "pretrain",
        "teach a tiny policy to see, from rendered scenes; goes on where it stopped",
        "star-r1 pretrain deploy/runs/tiny_pretrain.toml",
    )
    pretrain.add_argument("run_file", type=Path, metavar="RUN.toml", help="see deploy/runs/tiny_pretrain.toml")
    pretrain.set_defaults(run=run_pretrain)
    return parser


def run_train(options: argparse.Namespace) -> None:
    config = load_run_config(options.run_file, options.set)
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    out = options.out or Path("output") / f"{options.run_file.stem}-{now}"
    from orchestrator.training import run_training  # here, so that help and config errors come at once

    try:
        asyncio.run(run_training(config, out, Console()))
    except* ConfigError as group:
        raise _first(group) from None


def run_data_make(options: argparse.Namespace) -> None:
    from orchestrator.display import counting
    from tvr.config import DataConfig
    from tvr.rendered import make

    wanted = {key: getattr(options, key) for key in ("train", "test", "objects", "changes", "size", "spp", "seed")}
    try:
        config = DataConfig(
            path=options.out, settings=tuple(options.settings.split(",")), workers=options.workers, **wanted
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"data make: {key} = {first['input']!r}: {first['msg']}") from error
    console = Console()
    try:
        with counting(console, "rendering pairs") as counter:
            make(config, counter)
    except FileExistsError as error:
        raise ConfigError(f"data make: {error}") from error
    console.print(f"wrote {config.train} + {config.test} pairs to {config.path}", highlight=False)


def run_tiny_policy(options: argparse.Namespace) -> None:
    from learner.tiny_policy import make_tiny_policy

    count = make_tiny_policy(options.folder, options.seed)
    Console().print(f"wrote a policy of {count:,} parameters to {options.folder}", highlight=False)


def run_pretrain(options: argparse.Namespace) -> None:
    from learner.pretrain import load_pretrain_config, pretrain

    try:
        config = load_pretrain_config(options.run_file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{options.run_file}: {error}") from error
    Console().print(f"the model is in {pretrain(config)}", highlight=False)


def _first(group: BaseExceptionGroup[ConfigError]) -> ConfigError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _command(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what[:1].upper() + what[1:] + ".")
    return _parser(parser, f"example:\n  {example}\n")


def _parser(parser: argparse.ArgumentParser, epilog: str) -> argparse.ArgumentParser:
    parser.epilog = epilog
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def _range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not low.isdigit() or (dash and not high.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN-MAX, for example 2-3")
    return int(low), int(high) if dash else int(low)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, for example 160x120")
    return int(width), int(height)


if __name__ == "__main__":
    main()
