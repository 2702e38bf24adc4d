"""The workers of a run that come and go while it goes on: how many shall serve, and how they stand."""

import time

from orchestrator.cluster.rollouts import RayRollouts
from orchestrator.cluster.scoring import RayScorers
from orchestrator.run.control import Kind, Status, Wanted


class Workforce:
    """`run.control.Controlled`: rollout and reward workers."""

    def __init__(self, rollouts: RayRollouts, scorers: RayScorers) -> None:
        self._rollouts = rollouts
        self._scorers = scorers
        self._autoscale = rollouts.crew.config.rollout.autoscale

    def resize(self, wanted: Wanted) -> None:
        for supervisor, count in (
            (self._rollouts.supervisor, wanted.rollouts),
            (self._scorers.supervisor, wanted.scorers),
        ):
            is_chosen = supervisor is self._rollouts.supervisor and self._autoscale is not None
            if count is not None and not is_chosen and count != supervisor.fleet.target:
                supervisor.resize(count)

    def status(self) -> Status:
        rollouts, scorers = self._rollouts.supervisor, self._scorers.supervisor
        return Status(
            at=time.time(),
            version=rollouts.fleet.newest,
            rollouts=Kind(target=rollouts.fleet.target, workers=rollouts.state()),
            scorers=Kind(target=scorers.fleet.target, workers=scorers.state()),
            autoscale=None if self._autoscale is None else [self._autoscale.min, self._autoscale.max],
            waits={**self._rollouts.crew.waits_for_room, **self._scorers.crew.waits_for_room},
        )
