"""What the loop sees of the stages. `cluster/roles.py` implements them with Ray actors, tests with fakes."""

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from records.manifest import Manifest
from records.samples import PolicyVersion, Prompt, Sample, ScoredGroup, StepReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """The weights of one version: what they are, and references to their *buckets*, if they lie in a store."""

    manifest: Manifest
    buckets: tuple[Any, ...]


class Rollouts(Protocol):
    """The rollout workers, which have every sample scored by the reward workers as soon as it ends."""

    async def sample(self, prompt: Prompt, *, seed: int) -> ScoredGroup:
        """G scored samples of *prompt*, stamped with the versions that they were sampled under.

        Raises ScoringFailure, and never makes a number of a failure.
        """
        ...

    async def answer(self, prompt: Prompt) -> Sample:
        """One greedy answer, for evaluation."""
        ...


class Learner(Protocol):
    """The group of learner ranks."""

    async def step(self, groups: tuple[ScoredGroup, ...]) -> StepReport:
        """One update on *groups*; makes the next version."""
        ...

    async def checkpoint(self) -> None:
        """Begin to write the newest version with all that is needed to go on from it; steps may follow at once."""
        ...


class Publisher(Protocol):
    """The way from the learner to the rollout workers."""

    async def send(self, version: PolicyVersion) -> Coroutine[Any, Any, float]:
        """Take the weights of *version*, the learner's newest. When this returns, the learner may make its next step.

        What it returns ends when every live worker serves *version*, with the longest time, in seconds, for which a
        worker could not sample. Versions are sent one after another: the next when this one is served.
        """
        ...


class Journal(Protocol):
    """What is written down of each group while it is there."""

    def admitted(self, ticket: int, prompt_id: str) -> None: ...

    async def keep(self, step: PolicyVersion, groups: Sequence[ScoredGroup]) -> None:
        """Have the groups that *step* learns from on the disk."""
        ...

    def trained(self, step: PolicyVersion) -> None:
        """*step* was made, and its groups are kept."""
        ...

    def write(self, event: str, **facts: Any) -> None:
        """Whatever else is worth knowing."""
        ...
