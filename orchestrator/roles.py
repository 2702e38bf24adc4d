"""What the loop sees of the three stages. `ray_roles.py` implements them with Ray actors, tests with fakes."""

from typing import Any, Protocol

from tvr.records import PolicyVersion, Prompt, SampleGroup, ScoredGroup, StepReport


class Rollouts(Protocol):
    """The rollout workers."""

    async def sample(self, prompt: Prompt, *, seed: int) -> SampleGroup:
        """G samples of *prompt*, stamped with the versions that they were sampled under."""
        ...

    async def answer(self, prompt: Prompt) -> SampleGroup:
        """One greedy answer, for evaluation."""
        ...

    async def receive(self, version: PolicyVersion, weights: Any) -> None:
        """Return once every live worker serves *version*. *weights* is what `Learner.export` returned."""
        ...


class Scorer(Protocol):
    """The reward workers."""

    async def score(self, group: SampleGroup) -> ScoredGroup:
        """The complete scored group. Raises ScoringFailure, and never makes a number of a failure."""
        ...


class Learner(Protocol):
    """The group of learner ranks."""

    async def step(self, groups: tuple[ScoredGroup, ...]) -> StepReport:
        """One update on *groups*; makes the next version."""
        ...

    async def checkpoint(self) -> None:
        """Begin to write the newest version with all that is needed to go on from it; steps may follow at once."""
        ...

    async def export(self) -> Any:
        """The weights of the newest version, in whatever form `Rollouts.receive` takes."""
        ...

    async def save(self, folder: str) -> None:
        """Write the newest version as a plain Hugging Face folder."""
        ...
