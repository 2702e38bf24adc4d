"""What the run asks of an experiment tracker; a file each beside this one asks it of the tracker's own client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.run.trackers.samples import ShownSample

FINISH_S = 60.0
"""So long trackers have at the end of a run to take what is left, all together."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """With what a run is opened in a tracker: *id* is None the first time, later what the tracker gave.

    *settings* are those of the run file by dotted key. What a client keeps by itself comes into *folder*, that of the
    run.
    """

    project: str
    name: str
    id: str | None
    folder: Path
    settings: Mapping[str, str | int | float | bool]


class Tracker(Protocol):
    """A run, opened in a tracker. Any method may raise or hang: `sender.py` is made for that."""

    @property
    def id(self) -> str:
        """By what the tracker knows the run again."""
        ...

    def log(self, step: int, row: Mapping[str, float]) -> None: ...

    def log_samples(self, step: int, samples: Sequence[ShownSample]) -> None: ...

    def finish(self, ok: bool) -> None:
        """All that was logged is where it shall be. *ok*: the run came to its end."""
        ...
