"""The window: admits work so that no group trained on is ever more than `max_staleness` versions old.

Capacity is `(max_staleness + 1) * groups_per_step`. A slot is held from admission until the weights trained on its
group are served (`release`), and groups are taken in admission order. So when a group is admitted under served version
v, at most `capacity - 1` groups stand before it and are not yet released; it is trained on at version
`v + max_staleness` at the latest. Releasing earlier, before the weights are served, would break the bound by one.

One event loop calls everything here: samplers `admit` and `deliver`, the learning side `take`s and `release`s.
"""

import asyncio
from typing import NewType

from records.samples import ScoredGroup
from reward_service.load import Busy

Ticket = NewType("Ticket", int)
"""The number of an admission, from 0; groups are taken in this order."""


class Window:
    """See the module. *total_groups* bounds the whole run: after that many admissions `admit` returns None.

    A run that goes on has *done* groups behind it: learned from, and served. While *open* is clear the run is paused,
    and nothing is admitted; what was admitted goes its way.
    """

    def __init__(
        self,
        *,
        groups_per_step: int,
        max_staleness: int,
        total_groups: int,
        done: int = 0,
        open: asyncio.Event | None = None,
    ) -> None:
        if groups_per_step < 1 or max_staleness < 0:
            raise ValueError(f"groups_per_step {groups_per_step} must be at least 1, max_staleness {max_staleness} 0")
        self.capacity = (max_staleness + 1) * groups_per_step
        self.total_groups = total_groups
        self._admitted = self._taken = self._released = done
        self._ready: dict[Ticket, ScoredGroup] = {}
        self._changed = asyncio.Condition()
        self._open = open or _always()
        self._waiting = Busy()

    @property
    def num_held(self) -> int:
        """Slots in use."""
        return self._admitted - self._released

    @property
    def is_paused(self) -> bool:
        return not self._open.is_set()

    @property
    def num_ready(self) -> int:
        """Complete groups that wait for the learner."""
        return len(self._ready)

    def take_wait_s(self) -> float:
        """Seconds in which the learner has waited for groups, since the last call."""
        return self._waiting.take()

    async def admit(self) -> Ticket | None:
        """Wait for a free slot and hold it; None when the run needs no more groups."""
        while not self._all_admitted():
            await self._open.wait()
            async with self._changed:
                await self._changed.wait_for(lambda: self._all_admitted() or self.num_held < self.capacity)
                if not self._all_admitted() and not self.is_paused:  # it may be paused while a slot is waited for
                    ticket = Ticket(self._admitted)
                    self._admitted += 1
                    return ticket
        return None

    async def deliver(self, ticket: Ticket, group: ScoredGroup) -> None:
        """Hand in the complete group of *ticket*. Raises ValueError if it was delivered before or never admitted."""
        if not self._taken <= ticket < self._admitted or ticket in self._ready:
            raise ValueError(f"ticket {ticket} is not awaited: {self._admitted} admitted, {self._taken} taken")
        async with self._changed:
            self._ready[ticket] = group
            self._changed.notify_all()

    async def take(self, count: int) -> tuple[ScoredGroup, ...]:
        """Wait for the next *count* groups in admission order."""
        wanted = [Ticket(self._taken + offset) for offset in range(count)]
        async with self._changed:
            with self._waiting:
                await self._changed.wait_for(lambda: all(ticket in self._ready for ticket in wanted))
            self._taken += count
            return tuple(self._ready.pop(ticket) for ticket in wanted)

    async def release(self, count: int) -> None:
        """Free the slots of *count* taken groups, once the weights trained on them are served."""
        if self._released + count > self._taken:
            raise ValueError(f"cannot release {count}: {self._taken} taken, {self._released} released already")
        async with self._changed:
            self._released += count
            self._changed.notify_all()

    def _all_admitted(self) -> bool:
        return self._admitted >= self.total_groups


def _always() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
