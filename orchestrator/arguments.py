"""What all commands share: help with an example, and the forms of values."""

import argparse
from typing import Any


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
    if not low.isdigit() or (dash and not high.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN-MAX, for example 2-3")
    return int(low), int(high) if dash else int(low)


def to_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, for example 160x120")
    return int(width), int(height)


def to_count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
