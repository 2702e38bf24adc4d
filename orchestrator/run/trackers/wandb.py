"""Weights & Biases. WANDB_API_KEY, WANDB_MODE, WANDB_ENTITY, WANDB_BASE_URL ... are its own.

Its own count of calls is not ours: everything is drawn over `step`, so that an evaluation which ends late still
stands at its version.
"""

import os
import secrets
from collections.abc import Mapping, Sequence

import wandb

from orchestrator.config import ConfigError
from orchestrator.run.trackers.samples import ShownSample, as_rows
from orchestrator.run.trackers.tracker import FINISH_S, Opening

WITHOUT_ACCOUNT = ("offline", "disabled", "dryrun")


def check() -> None:
    """Raise ConfigError if there is nobody to log in as."""
    if os.environ.get("WANDB_MODE") in WITHOUT_ACCOUNT:
        return
    try:
        known, wrong = wandb.login(prompt=False, verify=False), ""
    except wandb.Error as error:
        known, wrong = False, f" ({error})"
    if not known:
        raise ConfigError(
            f"trackers.use names 'wandb': there is no API key{wrong}; set WANDB_API_KEY, run `wandb login`, or set "
            "WANDB_MODE=offline"
        )


def open_run(opening: Opening) -> "WandbRun":
    return WandbRun(opening)


class WandbRun:
    def __init__(self, opening: Opening) -> None:
        self.id = opening.id or secrets.token_hex(4)
        self._run = wandb.init(
            project=opening.project,
            name=opening.name,
            id=self.id,
            resume="allow",
            dir=str(opening.folder),
            config=dict(opening.settings),
            settings=wandb.Settings(
                console="off",  # the run's own lines are its own
                quiet=True,
                finish_timeout=FINISH_S / 2,  # holds for what it does as the process ends, too
                finish_timeout_raises=True,
            ),
            allow_val_change=True,
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log({"step": step, **row})

    def log_samples(self, step: int, samples: Sequence[ShownSample]) -> None:
        rows = as_rows(samples)
        pictures = [wandb.Image(it.picture, caption=it.caption) for it in samples if it.picture is not None]
        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._run.log({"step": step, "replies": table, **({"samples": pictures} if pictures else {})})

    def finish(self, ok: bool) -> None:
        self._run.finish(exit_code=0 if ok else 1)
