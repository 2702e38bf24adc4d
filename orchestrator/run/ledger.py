"""The ledger: of every admitted group, whether it was trained on, dropped or is open, read off the journal.

It balances if each ends exactly once, is of the same prompt however often it was asked again, and no step is missing
among those that were made.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.run.journal import JOURNAL, Event, read_events


@dataclass(slots=True)
class Ledger:
    """What became of the groups, by ticket: the prompt of each, the step that each was trained at, why it was dropped.

    *asked_again* counts groups that a later driver asked for again, *made_again* steps that were made again, from kept
    groups or, where there were none, from new ones. *events* counts all others by name.
    """

    prompts: dict[int, str] = field(default_factory=dict)
    trained: dict[int, int] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)
    asked_again: int = 0
    made_again: int = 0
    events: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    _groups: dict[int, int] = field(default_factory=dict)
    _reopened: set[int] = field(default_factory=set)
    _newest: int = -1

    @property
    def open(self) -> list[int]:
        """Tickets of groups that are neither trained on nor dropped."""
        return [ticket for ticket in self.prompts if ticket not in self.trained and ticket not in self.dropped]

    @property
    def prompts_trained(self) -> Counter[str]:
        """How often each prompt was trained on."""
        return Counter(self.prompts[ticket] for ticket in self.trained if ticket in self.prompts)

    def counts(self) -> dict[str, int]:
        """In words."""
        return {
            "groups admitted": len(self.prompts),
            "trained on": len(self.trained),
            "dropped": len(self.dropped),
            "open": len(self.open),
            "steps": len(set(self.trained.values())),
            "times a group was asked again after its worker was lost": self.events["asked again"],
            "times a group was asked again by a later driver": self.asked_again,
            "times a step was made again of its kept groups": self.events["made again"],
            "steps made again of other groups, for theirs were lost": self.made_again,
            "workers lost": self.events["ended"],
        }

    def add(self, event: Event) -> None:
        """The next line of the journal; what cannot be is one of the *faults*."""
        facts = event.facts
        match event.name:
            case "began":
                self._begin(facts["version"])
            case "admitted":
                self._admit(facts["ticket"], facts["prompt"])
            case "taken":
                self._groups[facts["step"]] = facts["groups"]
            case "trained":
                self._train(facts["step"])
            case "dropped":
                self._drop(facts["ticket"], facts["reason"])
            case other:
                self.events[other] += 1

    def _begin(self, version: int) -> None:
        """A driver begins behind *version*: steps beyond it were not kept, and will be made again."""
        undone = [ticket for ticket, step in self.trained.items() if step > version]
        self.made_again += len({self.trained.pop(ticket) for ticket in undone})
        self._reopened = set(self.open)

    def _admit(self, ticket: int, prompt: str) -> None:
        known = self.prompts.setdefault(ticket, prompt)
        if known != prompt:
            self.faults.append(f"group {ticket} is of prompt {known}, and was asked again as {prompt}")
        elif ticket in self._reopened:
            self._reopened.discard(ticket)
            self.asked_again += 1
        elif ticket != len(self.prompts) - 1 or ticket == self._newest:
            self.faults.append(f"group {ticket} was admitted twice, or not in its turn")
        self._newest = max(self._newest, ticket)

    def _train(self, step: int) -> None:
        if step not in self._groups:
            self.faults.append(f"step {step} was made of groups that nobody took")
            return
        size = self._groups[step]
        for ticket in range((step - 1) * size, step * size):
            self._end(ticket, f"trained on at step {step}")
            self.trained[ticket] = step

    def _drop(self, ticket: int, reason: str) -> None:
        self._end(ticket, f"dropped ({reason})")
        self.dropped[ticket] = reason

    def _end(self, ticket: int, how: str) -> None:
        if ticket not in self.prompts:
            self.faults.append(f"group {ticket} was {how}, and was never admitted")
        elif ticket in self.trained:
            self.faults.append(f"group {ticket} was trained on at step {self.trained[ticket]}, and then {how}")
        elif ticket in self.dropped:
            self.faults.append(f"group {ticket} was dropped ({self.dropped[ticket]}), and then {how}")


def read_ledger(folder: Path) -> Ledger:
    """That of the run in *folder*. Raises DamagedJournal."""
    events, _ = read_events(folder / JOURNAL)
    return make_ledger(events)


def make_ledger(events: Iterable[Event]) -> Ledger:
    ledger = Ledger()
    for event in events:
        ledger.add(event)
    steps = set(ledger.trained.values())
    if missing := set(range(1, max(steps, default=0) + 1)) - steps:
        ledger.faults.append(f"of the steps, {sorted(missing)} were never made")
    return ledger
