"""`star-r1 data make | trance | check | show`."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from orchestrator.commands.arguments import (
    Command,
    Range,
    Size,
    TaskName,
    TaskSettings,
    example,
    mendable,
    to_count,
    to_range,
    to_size,
)
from orchestrator.config import ConfigError, scoring_config
from orchestrator.display import counting, say
from records.task import load_task

DataFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A data set.")]
NewFolder = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; must not exist.")]

Objects = Annotated[
    Range, typer.Option(parser=to_range, metavar="MIN-MAX", help="Objects a scene.", show_default="2-3")
]
Changes = Annotated[Range, typer.Option(parser=to_range, metavar="MIN-MAX", help="Changes a pair.", show_default="1-2")]
PictureSize = Annotated[Size, typer.Option(parser=to_size, metavar="WxH", help="Of a picture.", show_default="160x120")]
OBJECTS, CHANGES, SIZE = Range(2, 3), Range(1, 2), Size(160, 120)

app = typer.Typer()


@app.command(
    cls=Command,
    epilog=example(
        "star-r1 data make --out data/small --train 100 --test 20 --objects 2-4 --changes 1-3 --seed 7",
    ),
)
def make(
    out: NewFolder,
    train: Annotated[int, typer.Option(metavar="N", help="Training pairs.")],
    test: Annotated[int, typer.Option(metavar="N", help="Held-out pairs.")],
    settings: Annotated[str, typer.Option(metavar="A,B", help="Equally common.")] = "basic,event,view",
    objects: Annotated[
        Range, typer.Option(parser=to_range, metavar="MIN-MAX", help="Objects a scene.", show_default="2-3")
    ] = OBJECTS,
    changes: Annotated[
        Range, typer.Option(parser=to_range, metavar="MIN-MAX", help="Changes a pair.", show_default="1-2")
    ] = CHANGES,
    size: Annotated[
        Size, typer.Option(parser=to_size, metavar="WxH", help="Picture size.", show_default="160x120")
    ] = SIZE,
    spp: Annotated[int, typer.Option(metavar="K", help="Samples per pixel.")] = 16,
    field_of_view: Annotated[
        float | None,
        typer.Option(metavar="DEG", help="Of the cameras (49.1, CLEVR's); less shows objects larger."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of everything.")] = 0,
    workers: Annotated[int, typer.Option(metavar="W", help="Processes, not in the result; 0: one a core.")] = 0,
) -> None:
    """Render a data set; goes on where a killed call stopped."""
    from tasks.tvr.data import rendered
    from tasks.tvr.data.config import DataConfig

    wanted: dict[str, Any] = {"train": train, "test": test, "objects": objects, "changes": changes, "size": size}
    wanted |= {"spp": spp, "seed": seed, "workers": workers}
    wanted |= {} if field_of_view is None else {"field_of_view": field_of_view}
    wanted["settings"] = tuple(name.strip() for name in settings.split(","))
    try:
        config = DataConfig(path=out, **wanted)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        given = f"{key} = {first['input']!r}: " if key else ""  # what concerns several names them itself
        raise ConfigError(f"data make: {given}{first['msg'].removeprefix('Value error, ')}") from error
    console = Console()
    started = time.monotonic()
    with mendable("data make", ValueError), counting(console, "rendering pairs") as counter:
        rendered.make(config, counter)
    seconds = time.monotonic() - started
    say(console, f"wrote {config.train} + {config.test} pairs to {config.path} in {seconds:.0f} s")


@app.command(cls=Command, epilog=example("star-r1 data trance downloads/trance --out data/trance --split test"))
def trance(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Its folder, or one of the two files.")],
    out: NewFolder,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The split of data.h5 to convert (all); data.jsonl has none: all of it becomes this one (test).",
        ),
    ] = None,
    max_samples: Annotated[
        int | None,
        typer.Option("--max", parser=to_count, metavar="N", help="End each split after N samples kept."),
    ] = None,
    with_position: Annotated[
        bool,
        typer.Option("--with-position", help="Keep samples in which objects move; left out and counted otherwise."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first damaged sample and write nothing.")
    ] = False,
) -> None:
    """Convert TRANCE as downloaded (data.h5, or data.jsonl and image/)."""
    from tasks.tvr.data.trance import TranceError, convert, describe

    console = Console()
    with mendable("data trance", TranceError), counting(console, "reading samples") as counter:
        summary = convert(
            source,
            out,
            split=split,
            max_samples=max_samples,
            with_position=with_position,
            strict=strict,
            progress=counter,
        )
    for line in describe(summary):
        say(console, line)


@app.command(cls=Command, epilog=example("star-r1 data check data/tiny", "star-r1 data check digits --task questions"))
def check(folder: DataFolder, task: TaskName = "tvr", settings: TaskSettings = None) -> None:
    """Check every row and decode every picture; exit status 1 if something is wrong."""
    config, console = scoring_config(task, folder, None, settings or []), Console()
    with mendable("data check", ValueError), counting(console, "checking") as counter:
        lines, is_well = load_task(task).check(config.data, counter)
    for line in lines:
        say(console, line)
    if not is_well:
        sys.exit(1)


@app.command(cls=Command, epilog=example("star-r1 data show data/tiny --out output/tiny.html"))
def show(
    folder: DataFolder,
    out: Annotated[Path, typer.Option(metavar="PAGE.html", help="One file, pictures included.")],
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Default: all splits.")] = None,
    most: Annotated[int, typer.Option("--max", parser=to_count, metavar="N", help="Prompts to show.")] = 60,
    task: TaskName = "tvr",
    settings: TaskSettings = None,
) -> None:
    """Write a page that shows prompts with their pictures and the truth (tvr: pairs, with their changes marked)."""
    config = scoring_config(task, folder, None, settings or [])
    with mendable("data show", ValueError):
        shown = load_task(task).write_page(config.data, out, split, most)
    say(Console(), f"wrote {shown} prompts to {out}; open it in a browser")
