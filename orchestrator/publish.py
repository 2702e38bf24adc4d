"""Publishing a version: from the learner to every rollout worker."""

from orchestrator.roles import Learner, Rollouts
from tvr.records import PolicyVersion


async def publish(version: PolicyVersion, learner: Learner, rollouts: Rollouts) -> None:
    """Return once *version* is served, that is, confirmed by every live rollout worker."""
    await rollouts.receive(version, await learner.export())
