"""What a running job does of what it is asked: workers come and go, it pauses, keeps a checkpoint, or ends."""

import asyncio
import os
import signal
import socket
import time

from orchestrator.cluster.jobs import own_job
from orchestrator.cluster.rollouts import RayRollouts
from orchestrator.cluster.scoring import RayScorers
from orchestrator.run.control import Kind, State, Status, Wanted, own_release
from orchestrator.run.failure import root_of
from orchestrator.run.teller import Teller


class Steering:
    """`run.control.Controlled`. The run admits groups while *open* is set, and answers *checkpoint_asked*."""

    def __init__(self, rollouts: RayRollouts, scorers: RayScorers, tell: Teller) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.checkpoint_asked = asyncio.Event()
        self._rollouts = rollouts
        self._scorers = scorers
        self._tell = tell
        self._autoscale = rollouts.crew.config.rollout.autoscale
        self._stopping = False
        self._wanted = Wanted()

    def do(self, wanted: Wanted) -> None:
        """What of it is new."""
        known, self._wanted = self._wanted, wanted
        self._resize(wanted)
        if bool(wanted.paused) == self.open.is_set():
            (self.open.clear if wanted.paused else self.open.set)()
            self._tell("paused" if wanted.paused else "goes on")
        if wanted.checkpoint is not None and wanted.checkpoint != known.checkpoint:
            self.checkpoint_asked.set()
        if wanted.stop and not self._stopping:
            self._stopping = True
            self._tell("asked to stop")
            signal.raise_signal(signal.SIGTERM)  # as a scheduler asks

    def _resize(self, wanted: Wanted) -> None:
        for supervisor, count in (
            (self._rollouts.supervisor, wanted.rollouts),
            (self._scorers.supervisor, wanted.scorers),
        ):
            is_chosen = supervisor is self._rollouts.supervisor and self._autoscale is not None
            if count is not None and not is_chosen and count != supervisor.fleet.target:
                supervisor.resize(count)

    def status(self) -> Status:
        return self._status("stopping" if self._stopping else "running" if self.open.is_set() else "paused", "")

    def ended(self, error: BaseException | None) -> Status:
        if error is None:
            return self._status("ended", "")
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            return self._status("stopped", "")
        root = root_of(error)
        return self._status("failed", f"{type(root).__name__}: {root}".strip().split("\n")[0])

    def _status(self, state: State, why: str) -> Status:
        rollouts, scorers = self._rollouts.supervisor, self._scorers.supervisor
        return Status(
            at=time.time(),
            version=rollouts.fleet.newest,
            rollouts=Kind(target=rollouts.fleet.target, workers=rollouts.state()),
            scorers=Kind(target=scorers.fleet.target, workers=scorers.state()),
            autoscale=None if self._autoscale is None else [self._autoscale.min, self._autoscale.max],
            waits={**self._rollouts.crew.waits_for_room, **self._scorers.crew.waits_for_room},
            state=state,
            why=why,
            release=own_release(),
            host=socket.gethostname(),
            pid=os.getpid(),
            job=own_job(),
        )
