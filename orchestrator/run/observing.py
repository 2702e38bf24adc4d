"""How a running run stands goes to Ray's metrics page each second: what it does, its window and its workers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.metrics_page import RayMetrics
from orchestrator.loop.activity import Activity
from orchestrator.loop.window import Window
from orchestrator.supervision.fleet import Fleet

LOOK_S = 1.0


@dataclass
class Observing:
    """Of one run; it has a *window* once it samples to learn."""

    page: RayMetrics
    activity: Activity
    fleets: Sequence[Fleet]
    window: Window | None = None

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            self.page.look(self.activity, self.fleets, self.window)
            await asyncio.sleep(LOOK_S)
