"""What all commands share: how help looks, the forms of values, and errors that a user can mend."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from orchestrator.config import ConfigError


class _EndsAsWritten:
    """Help that ends with examples, whose lines stay as they are: they are there to be copied."""

    epilog: str | None

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


class Command(_EndsAsWritten, TyperCommand):
    """Not a group."""


class Group(_EndsAsWritten, TyperGroup):
    """Lists its commands by panel, as Typer does with colours; this can be read anywhere and piped."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", [])
            panel.append((name, command.get_short_help_str(limit=200)))
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def example(*lines: str) -> str:
    """The end of a command's help."""
    return "\n  ".join(["example:", *lines])


class Range(NamedTuple):
    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


class Size(NamedTuple):
    """In pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def to_range(text: str | Range) -> Range:
    low, dash, high = str(text).partition("-")
    if not low.isdecimal() or (dash and not high.isdecimal()):
        raise typer.BadParameter(f"{text!r} is not MIN-MAX, for example 2-3")
    return Range(int(low), int(high) if dash else int(low))


def to_size(text: str | Size) -> Size:
    width, _, height = str(text).lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter(f"{text!r} is not WIDTHxHEIGHT, for example 160x120")
    return Size(int(width), int(height))


def to_count(text: str | int) -> int:
    if not str(text).isdecimal() or int(text) == 0:
        raise typer.BadParameter(f"{text!r} is not a whole number of at least 1")
    return int(text)


def to_seed(text: str | int) -> int:
    if not str(text).isdecimal() or int(text) >= 1 << 63:
        raise typer.BadParameter(f"{text!r} is not a whole number from 0 to {(1 << 63) - 1}")
    return int(text)


TaskName = Annotated[
    str, typer.Option("--task", metavar="TASK", help="tvr, questions, counting or package.module:name of your own.")
]
TaskSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="A value of the task's tables, as in a run file."),
]


@contextmanager
def opened() -> Iterator[None]:
    """Within it, what a task says of its data or its rules is a ConfigError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error


@contextmanager
def mendable(command: str, *errors: type[Exception]) -> Iterator[None]:
    """Within it, *errors* and all errors of files become a ConfigError, one message that begins with *command*."""
    kinds: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except kinds as error:
        said = str(error)
        if isinstance(error, OSError) and error.strerror:  # the system's words; ours name path and remedy themselves
            said = f"{error.filename or 'a file'}: {error.strerror}; mend it, or give another path"
        raise ConfigError(f"{command}: {said}") from error
