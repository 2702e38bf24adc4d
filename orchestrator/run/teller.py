"""What happens to workers is written to the journal, and said to who watches the run."""

from typing import Any

from rich.console import Console

from orchestrator.display import say
from orchestrator.run.journal import Journal

SAID = {
    "ended": "{worker} was lost: {why}; its work goes to others",
    "leaving": "{worker} leaves when it has ended what it has",
    "gone": "{worker} is gone",
    "waiting": "{worker} waits for room: {why}",
    "paused": "paused: no new groups, until star-r1 resume",
    "goes on": "goes on",
    "asked to stop": "asked to stop",
}
"""Of which events, and how."""


class Teller:
    """`cluster.crew.Tell` of a run."""

    def __init__(self, journal: Journal, console: Console) -> None:
        self._journal = journal
        self._console = console

    def __call__(self, event: str, **facts: Any) -> None:
        self._journal.write(event, **facts)
        if event in SAID:
            say(self._console, SAID[event].format(**facts))
