"""Trackio: SQLite on this machine (TRACKIO_DIR), a Hugging Face Space (TRACKIO_SPACE_ID) or a server.

Its client sends on threads of its own and warns of what it cannot; only what it raises is counted here.
"""

import os
import secrets
from collections.abc import Mapping, Sequence

import trackio
from huggingface_hub import get_token

from orchestrator.config import ConfigError
from orchestrator.run.trackers.samples import ShownSample, as_rows
from orchestrator.run.trackers.tracker import Opening


def check() -> None:
    """Raise ConfigError if a Space is to be written, and nobody is logged in."""
    if (space := os.environ.get("TRACKIO_SPACE_ID")) and get_token() is None:
        raise ConfigError(
            f"trackers.use names 'trackio' and TRACKIO_SPACE_ID is {space!r}: there is no Hugging Face token; set "
            "HF_TOKEN, run `hf auth login`, or unset TRACKIO_SPACE_ID to keep the run on this machine"
        )


def open_run(opening: Opening) -> "TrackioRun":
    return TrackioRun(opening)


class TrackioRun:
    """Known by its name, which therefore is made a name that no other run has."""

    def __init__(self, opening: Opening) -> None:
        self.id = opening.id or f"{opening.name}-{secrets.token_hex(2)}"
        self._run = trackio.init(
            opening.project,
            name=self.id,
            config=dict(opening.settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def log_samples(self, step: int, samples: Sequence[ShownSample]) -> None:
        pictures = [it.picture and trackio.Image(it.picture, caption=it.caption) for it in samples]
        rows = [{"pictures": picture, **row} for picture, row in zip(pictures, as_rows(samples), strict=True)]
        self._run.log({"samples": trackio.Table(data=rows)}, step=step)

    def finish(self, ok: bool) -> None:
        self._run.finish()
