"""What all commands share: help with an example, the forms of values, and errors that a user can mend."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.config import ConfigError


def add_command(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    """A subcommand that *what* describes in the list of commands and in its own help, followed by *example*."""
    parser = commands.add_parser(name, help=what, description=what[:1].upper() + what[1:] + ".")
    return with_epilog(parser, f"example:\n  {example}\n")


def with_epilog(parser: argparse.ArgumentParser, epilog: str) -> argparse.ArgumentParser:
    parser.epilog = epilog
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def to_range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not low.isdecimal() or (dash and not high.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN-MAX, for example 2-3")
    return int(low), int(high) if dash else int(low)


def to_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, for example 160x120")
    return int(width), int(height)


def to_count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def to_seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {(1 << 63) - 1}")
    return int(text)


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
