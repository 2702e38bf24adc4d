"""`rollout.autoscale` of a run: what its rules see, and what they decide (`supervision.autoscale`)."""

import asyncio
import time

from rich.console import Console

from orchestrator.cluster.rollouts import RayRollouts
from orchestrator.display import say
from orchestrator.loop.window import Window

LOOK_S = 5.0


async def keep_scaling(rollouts: RayRollouts, window: Window, groups_per_step: int, console: Console) -> None:
    """Have as many rollout workers as the rules say, until cancelled. Without `rollout.autoscale` nothing is done.

    A learner that waits because the run is paused says nothing.
    """
    scaler = rollouts.make_autoscaler()
    if scaler is None:
        return
    window.take_wait_s()
    looked, was_paused = time.monotonic(), window.is_paused
    while True:
        await asyncio.sleep(LOOK_S)
        now = time.monotonic()
        waited = window.take_wait_s() / (now - looked)
        share = None if was_paused or window.is_paused else waited
        looked, was_paused = now, window.is_paused
        why = rollouts.autoscale(scaler, share, window.num_ready, groups_per_step, now)
        if why:
            say(console, f"rollout workers: {rollouts.supervisor.fleet.target}, for {why}")
