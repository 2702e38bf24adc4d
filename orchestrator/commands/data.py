"""`star-r1 data make | trance | check | show`."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from orchestrator.commands.arguments import add_command, mendable, to_count, to_range, to_size
from orchestrator.config import ConfigError
from orchestrator.display import say


def add_data_commands(commands: Any) -> None:
    data = add_command(commands, "data", "make, convert, check and look at data sets", "star-r1 data show data/tiny")
    data_commands = data.add_subparsers(metavar="COMMAND", required=True)
    _add_make(data_commands)

    trance = add_command(
        data_commands,
        "trance",
        "convert TRANCE as downloaded (data.h5, or data.jsonl and image/)",
        "star-r1 data trance downloads/trance --out data/trance --split test",
    )
    trance.add_argument("source", type=Path, metavar="SRC", help="its folder, or one of the two files")
    trance.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")
    trance.add_argument(
        "--split",
        metavar="NAME",
        help="the split of data.h5 to convert (all); data.jsonl has none: all of it becomes this one (test)",
    )
    trance.add_argument("--max", type=to_count, metavar="N", help="end each split after N samples kept")
    trance.add_argument(
        "--with-position",
        action="store_true",
        help="keep samples in which objects move; left out and counted otherwise",
    )
    trance.add_argument("--strict", action="store_true", help="stop at the first damaged sample and write nothing")
    trance.set_defaults(run=run_trance)

    check = add_command(
        data_commands,
        "check",
        "check every row and decode every picture; exit status 1 if something is wrong",
        "star-r1 data check data/tiny",
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="a data set")
    check.set_defaults(run=run_check)

    show = add_command(
        data_commands,
        "show",
        "write a page that shows pairs of every setting and view with their changes marked",
        "star-r1 data show data/tiny --out output/tiny.html",
    )
    show.add_argument("folder", type=Path, metavar="DIR", help="a data set")
    show.add_argument("--out", type=Path, required=True, metavar="PAGE.html", help="one file, pictures included")
    show.add_argument("--split", metavar="NAME", help="default: all splits")
    show.add_argument("--max", type=to_count, default=60, metavar="N", help="pairs to show (%(default)s)")
    show.set_defaults(run=run_show)


def _add_make(data_commands: Any) -> None:
    make = add_command(
        data_commands,
        "make",
        "render a data set; goes on where a killed call stopped",
        "star-r1 data make --out data/small --train 100 --test 20 --objects 2-4 --changes 1-3 --seed 7",
    )
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")
    make.add_argument("--settings", default="basic,event,view", metavar="A,B", help="equally common (%(default)s)")
    make.add_argument("--train", type=int, required=True, metavar="N", help="training pairs")
    make.add_argument("--test", type=int, required=True, metavar="N", help="held-out pairs")
    make.add_argument("--objects", type=to_range, default=(2, 3), metavar="MIN-MAX", help="objects a scene (2-3)")
    make.add_argument("--changes", type=to_range, default=(1, 2), metavar="MIN-MAX", help="changes a pair (1-2)")
    make.add_argument("--size", type=to_size, default=(160, 120), metavar="WxH", help="picture size (160x120)")
    make.add_argument("--spp", type=int, default=16, metavar="K", help="samples per pixel (%(default)s)")
    make.add_argument(
        "--field-of-view", type=float, metavar="DEG", help="of the cameras (49.1, CLEVR's); less shows objects larger"
    )
    make.add_argument("--seed", type=int, default=0, metavar="S", help="seed of everything (%(default)s)")
    make.add_argument("--workers", type=int, default=0, metavar="W", help="processes, not in the result; 0: one a core")
    make.set_defaults(run=run_make)


def run_make(options: argparse.Namespace) -> None:
    from orchestrator.display import counting
    from tvr.data.config import DataConfig
    from tvr.data.rendered import make

    keys = ("train", "test", "objects", "changes", "size", "spp", "field_of_view", "seed", "workers")
    wanted = {key: value for key in keys if (value := getattr(options, key)) is not None}
    try:
        settings = tuple(name.strip() for name in options.settings.split(","))
        config = DataConfig(path=options.out, settings=settings, **wanted)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        given = f"{key} = {first['input']!r}: " if key else ""  # what concerns several names them itself
        raise ConfigError(f"data make: {given}{first['msg'].removeprefix('Value error, ')}") from error
    console = Console()
    started = time.monotonic()
    with mendable("data make", ValueError), counting(console, "rendering pairs") as counter:
        make(config, counter)
    seconds = time.monotonic() - started
    say(console, f"wrote {config.train} + {config.test} pairs to {config.path} in {seconds:.0f} s")


def run_trance(options: argparse.Namespace) -> None:
    from orchestrator.display import counting
    from tvr.data.trance import TranceError, convert, describe

    console = Console()
    with mendable("data trance", TranceError), counting(console, "reading samples") as counter:
        summary = convert(
            options.source,
            options.out,
            split=options.split,
            max_samples=options.max,
            with_position=options.with_position,
            strict=options.strict,
            progress=counter,
        )
    for line in describe(summary):
        say(console, line)


def run_check(options: argparse.Namespace) -> None:
    from orchestrator.display import counting
    from tvr.data.check import check, describe

    console = Console()
    with mendable("data check"), counting(console, "checking pairs") as counter:
        report = check(options.folder, counter)
    for line in describe(report):
        say(console, line)
    if report.problems:
        sys.exit(1)


def run_show(options: argparse.Namespace) -> None:
    from tvr.data.show import write_page

    with mendable("data show", ValueError):
        shown = write_page(options.folder, options.out, split=options.split, max_pairs=options.max)
    say(Console(), f"wrote {shown} pairs to {options.out}; open it in a browser")
