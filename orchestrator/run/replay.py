"""A refused step done again on this machine, to see which of its groups is not finite."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from learner.refused import load_refused
from orchestrator.config import ConfigError


def replay(folder: Path, console: Console) -> None:
    """Print the loss of each group, and whether it and its gradient are finite. Raises ConfigError."""
    if not (folder / "refused.json").exists():
        raise ConfigError(f"{folder}: holds no refused step; give one of the folders in a run directory's refused/")
    try:
        groups, config, job = load_refused(folder)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not (folder / "model" / "config.json").exists():
        raise ConfigError(
            f"{folder}: the policy is missing, its folder model/; give a folder as `train` left it in refused/"
        )
    from learner.actor import LearnerRank  # here, so that a wrong folder is said at once

    learner = LearnerRank(config, job, rank=0, world_size=1)
    learner.connect(*learner.host_meeting())
    table = Table(title=Text(f"{folder.name}: each group alone"))
    for column in ("group", "samples", "loss", "finite"):
        table.add_column(column, justify="right" if column in ("samples", "loss") else "left")
    for found in learner.examine(groups):
        size = len(groups[found.index].group.samples)
        said = "yes" if found.is_finite else f"no: {found}"
        table.add_row(Text(found.prompt_id), str(size), f"{found.loss:+.6g}", Text(said))
    console.print(table)
    learner.close()
