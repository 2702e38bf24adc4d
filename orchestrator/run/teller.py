"""What happens to workers is written to the journal, and said to who watches the run; the learner's is its activity."""

from typing import Any

from rich.console import Console

from orchestrator.cluster.learner import LEARNER, MAKING_AGAIN
from orchestrator.display import say
from orchestrator.loop.activity import Activity
from orchestrator.run.journal import Journal

SAID = {
    "ended": "{worker} was lost: {why}; its work goes to others",
    "leaving": "{worker} leaves when it has ended what it has",
    "gone": "{worker} is gone",
    "waiting": "{worker} waits for room: {why}",
}
"""Of which events, and how."""


class Teller:
    """`cluster.crew.Tell` of a run."""

    def __init__(self, journal: Journal, console: Console, activity: Activity) -> None:
        self._journal = journal
        self._console = console
        self._activity = activity

    def __call__(self, event: str, **facts: Any) -> None:
        self._journal.write(event, **facts)
        if event == MAKING_AGAIN or (event == "ended" and facts["worker"].startswith(LEARNER)):
            self._activity.lost()
        elif event == "serving" and facts["worker"].startswith(LEARNER):
            self._activity.recovered()
        if event in SAID:
            say(self._console, SAID[event].format(**facts))
