"""What a run does of what it is asked, on fakes of its workers."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.loop.stop import cancelled_by_sigterm
from orchestrator.run.control import Wanted
from orchestrator.run.steering import Steering


class FakeWorkers:
    """So many as they were last asked to be."""

    def __init__(self, autoscale: Any = None) -> None:
        self.asked: list[int] = []
        self.fleet = SimpleNamespace(target=1, newest=3)
        state = {"worker-0": "serving"}
        self.supervisor = SimpleNamespace(fleet=self.fleet, resize=self.resize, state=lambda: state)
        config = SimpleNamespace(rollout=SimpleNamespace(autoscale=autoscale))
        self.crew = SimpleNamespace(config=config, waits_for_room={})

    def resize(self, count: int) -> None:
        self.fleet.target = count
        self.asked.append(count)


class Told(list[str]):
    def __call__(self, event: str, **facts: object) -> None:
        self.append(event)


def steering(autoscale: Any = None) -> tuple[Any, FakeWorkers, FakeWorkers, Told]:
    rollouts, scorers, told = FakeWorkers(autoscale), FakeWorkers(), Told()
    parts: list[Any] = [rollouts, scorers, told]
    return Steering(*parts), rollouts, scorers, told


async def test_workers_are_as_many_as_wanted():
    run, rollouts, scorers, _ = steering()
    run.do(Wanted(rollouts=3))
    run.do(Wanted(rollouts=3, scorers=1))
    assert (rollouts.asked, scorers.asked) == ([3], [])


async def test_a_run_that_chooses_its_workers_itself_is_not_told():
    run, rollouts, _, _ = steering(autoscale=SimpleNamespace(min=1, max=4))
    run.do(Wanted(rollouts=3))
    assert rollouts.asked == []


async def test_a_pause_is_in_the_status_and_the_journal_once_however_often_it_is_asked_for():
    run, _, _, told = steering()
    assert run.status().state == "running"
    for wanted in (Wanted(paused=True), Wanted(paused=True, rollouts=1)):
        run.do(wanted)
    assert (run.status().state, run.open.is_set()) == ("paused", False)
    for wanted in (Wanted(paused=False), Wanted()):
        run.do(wanted)
    assert (run.status().state, run.open.is_set()) == ("running", True)
    assert told == ["paused", "goes on"]


async def test_a_checkpoint_is_asked_for_once_by_one_request():
    run, *_ = steering()
    run.do(Wanted(checkpoint=4))
    assert run.checkpoint_asked.is_set()
    run.checkpoint_asked.clear()
    run.do(Wanted(checkpoint=4, paused=True))
    assert not run.checkpoint_asked.is_set()
    run.do(Wanted(checkpoint=5, paused=True))
    assert run.checkpoint_asked.is_set()


async def test_a_run_that_is_asked_to_stop_is_cancelled_as_by_sigterm():
    run, _, _, told = steering()

    async def training() -> None:
        with cancelled_by_sigterm():
            run.do(Wanted(stop=True))
            assert run.status().state == "stopping"
            run.do(Wanted(stop=True, paused=True))
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.create_task(training()), 10)
    assert told.count("asked to stop") == 1
    assert run.ended(asyncio.CancelledError()).state == "stopped"


async def test_how_it_ended_is_in_the_status():
    run, *_ = steering()
    assert run.ended(None).state == "ended"
    error = ExceptionGroup("", [ExceptionGroup("", [ValueError("loss nan\nmore")])])
    assert (run.ended(error).state, run.ended(error).why) == ("failed", "ValueError: loss nan")
