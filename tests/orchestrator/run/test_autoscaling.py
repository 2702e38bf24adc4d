"""What the rules of `rollout.autoscale` are shown in a run, and what is said of what they decide."""

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.loop.window import Ticket, Window
from orchestrator.run import autoscaling
from orchestrator.run.autoscaling import keep_scaling
from tests.fakes import make_group, make_prompt, make_scored


class Looked:
    """Rollout workers whose rules have seen enough after three looks; the second decides."""

    def __init__(self, scaler: object | None) -> None:
        self.supervisor = SimpleNamespace(fleet=SimpleNamespace(target=2))
        self.scaler = scaler
        self.seen: list[tuple[float, int, int]] = []
        self.enough = asyncio.Event()

    def make_autoscaler(self) -> object | None:
        return self.scaler

    def autoscale(self, scaler: object, share: float, ready: int, groups_per_step: int, now: float) -> str:
        assert scaler is self.scaler
        self.seen.append((share, ready, groups_per_step))
        if len(self.seen) == 3:
            self.enough.set()
        return "groups that wait" if len(self.seen) == 2 else ""


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(autoscaling, "LOOK_S", 0.01)
    return io.StringIO()


def window() -> Window:
    return Window(groups_per_step=4, max_staleness=0, total_groups=8)


async def test_the_rules_see_how_the_learner_waits_and_what_is_ready_and_what_they_decide_is_said(out: io.StringIO):
    rollouts: Any = Looked(object())
    tickets = window()
    assert await tickets.admit() == 0
    await tickets.deliver(Ticket(0), make_scored(make_group(make_prompt(), 0), [1.0, 0.0]))
    learner = asyncio.create_task(tickets.take(4))  # three more never come
    scaling = asyncio.create_task(keep_scaling(rollouts, tickets, 4, Console(file=out)))
    await rollouts.enough.wait()
    for task in (learner, scaling):
        task.cancel()
    assert [seen[1:] for seen in rollouts.seen] == [(1, 4)] * 3
    assert rollouts.seen[-1][0] > 0.5  # it waits all the time
    assert out.getvalue() == "rollout workers: 2, for groups that wait\n"


async def test_without_rules_nothing_is_done(out: io.StringIO):
    rollouts: Any = Looked(None)
    await asyncio.wait_for(keep_scaling(rollouts, window(), 4, Console(file=out)), 10)
    assert rollouts.seen == []
