"""`star-r1 pretrain | tiny-policy`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from orchestrator.commands.arguments import mendable, to_seed
from orchestrator.config import ConfigError, explain
from orchestrator.display import counting, say


def pretrain(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="See deploy/runs/tiny_pretrain.toml.")],
) -> None:
    """Teach a tiny policy to see, from rendered scenes; goes on where it stopped."""
    from tiny_policy import pretrain as pretraining

    try:
        config = pretraining.load_pretrain_config(run_file)
    except ValidationError as error:
        raise ConfigError(explain(pretraining.PretrainConfig, run_file, error)) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run_file}: cannot be read ({error}); give the path of a run file") from error
    console = Console()
    try:
        folder = pretraining.pretrain(config, partial(counting, console))
    except ValueError as error:
        raise ConfigError(f"{run_file}: {error}") from error
    say(console, f"the model is in {folder}")


def tiny_policy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; must be empty, if it is there.")],
    seed: Annotated[int, typer.Option(parser=to_seed, metavar="S", help="Seed of the weights.")] = 0,
) -> None:
    """Make a freshly initialised tiny Qwen2.5-VL."""
    with mendable("tiny-policy"):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"tiny-policy: {folder} holds something; empty it, or give another folder")
        from tiny_policy.make import make_tiny_policy  # here, so that a wrong folder is said at once

        count = make_tiny_policy(folder, seed)
    say(Console(), f"wrote a policy of {count:,} parameters to {folder}")
