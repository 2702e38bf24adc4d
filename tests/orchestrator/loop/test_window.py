"""The window's promise: nothing trained on is more than `max_staleness` versions old. Proved by simulation."""

import asyncio
import random
from types import SimpleNamespace

import pytest

from orchestrator.loop.window import Window
from tests.fakes import make_group, make_prompt, make_scored


def group(version: int = 0):
    return make_scored(make_group(make_prompt(), version), [1.0, 0.0])


async def simulate(max_staleness: int, groups_per_step: int, seed: int, release: str) -> int:
    """The largest staleness in a run of 12 steps with random interleaving.

    The learner makes its next step while a version is being served; versions are served one after another. Slots are
    released when the version is *served*, as they should be, or, which breaks the rule, when it is *sent*.
    """
    steps, served, worst = 12, 0, 0
    window = Window(groups_per_step=groups_per_step, max_staleness=max_staleness, total_groups=steps * groups_per_step)
    rng = random.Random(seed)

    async def wander(most: int) -> None:
        for _ in range(rng.randint(0, most)):
            await asyncio.sleep(0)

    async def sample(ticket) -> None:
        version = served
        await wander(8)
        await window.deliver(ticket, group(version))

    async def sampling() -> None:
        async with asyncio.TaskGroup() as tasks:
            while (ticket := await window.admit()) is not None:
                tasks.create_task(sample(ticket))

    async def serve(version: int, count: int) -> None:
        nonlocal served
        await wander(12)
        served = version
        if release == "served":
            await window.release(count)

    async def learning(tasks: asyncio.TaskGroup) -> None:
        nonlocal worst
        serving = None
        for step in range(steps):
            taken = await window.take(groups_per_step)
            worst = max(worst, *(step - item.group.oldest_version for item in taken))
            await wander(12)
            if serving is not None:
                await serving
            if release == "sent":
                await window.release(len(taken))
            serving = tasks.create_task(serve(step + 1, len(taken)))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sampling())
        tasks.create_task(learning(tasks))
    return worst


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 3])
@pytest.mark.parametrize("groups_per_step", [1, 3, 8])
async def test_bound_is_reached_and_never_exceeded(max_staleness, groups_per_step):
    worst = [await simulate(max_staleness, groups_per_step, seed, release="served") for seed in range(8)]
    assert max(worst) == max_staleness


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
async def test_releasing_before_the_version_is_served_breaks_the_bound(max_staleness):
    worst = [await simulate(max_staleness, 3, seed, release="sent") for seed in range(8)]
    assert max(worst) == max_staleness + 1


async def test_groups_are_taken_in_admission_order():
    window = Window(groups_per_step=2, max_staleness=0, total_groups=2)
    first, second = await window.admit(), await window.admit()
    late, early = group(), group()
    await window.deliver(second, late)
    await window.deliver(first, early)
    assert await window.take(2) == (early, late)


async def test_admission_waits_for_a_released_slot_and_ends_with_none():
    window = Window(groups_per_step=1, max_staleness=0, total_groups=2)
    await window.deliver(await window.admit(), group())
    waiting = asyncio.create_task(window.admit())
    await window.take(1)
    await asyncio.sleep(0)
    assert not waiting.done()
    await window.release(1)
    assert await waiting == 1
    assert await window.admit() is None


async def test_a_ticket_is_delivered_once():
    window = Window(groups_per_step=2, max_staleness=0, total_groups=2)
    ticket = await window.admit()
    await window.deliver(ticket, group())
    with pytest.raises(ValueError, match="is not awaited"):
        await window.deliver(ticket, group())
    with pytest.raises(ValueError, match="ticket 1 is not awaited: 1 admitted, 0 taken"):
        await window.deliver(1, group())
    with pytest.raises(ValueError, match="cannot release"):
        await window.release(1)


@pytest.mark.parametrize(("groups_per_step", "max_staleness"), [(0, 0), (1, -1)])
def test_a_window_without_room_is_refused(groups_per_step, max_staleness):
    with pytest.raises(
        ValueError, match=f"groups_per_step {groups_per_step} must be at least 1, max_staleness {max_staleness}"
    ):
        Window(groups_per_step=groups_per_step, max_staleness=max_staleness, total_groups=1)


async def test_a_run_that_goes_on_admits_only_what_is_not_done():
    window = Window(groups_per_step=2, max_staleness=1, total_groups=8, done=6)
    assert window.num_held == 0
    assert [await window.admit(), await window.admit(), await window.admit()] == [6, 7, None]
    with pytest.raises(ValueError, match="ticket 5 is not awaited"):
        await window.deliver(5, group())
    await window.deliver(6, first := group())
    await window.deliver(7, second := group())
    assert await window.take(2) == (first, second)


async def test_a_run_that_goes_on_has_its_whole_capacity():
    window = Window(groups_per_step=2, max_staleness=1, total_groups=100, done=6)
    admissions = [asyncio.create_task(window.admit()) for _ in range(5)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert [task.result() if task.done() else "waits" for task in admissions] == [6, 7, 8, 9, "waits"]
    admissions[-1].cancel()


@pytest.mark.parametrize("done", [4, 6])
async def test_a_run_that_is_done_admits_nothing(done):
    assert await Window(groups_per_step=2, max_staleness=1, total_groups=4, done=done).admit() is None


async def test_the_time_in_which_the_learner_waits_is_told_once(monkeypatch):
    now = 0.0
    monkeypatch.setattr("reward_service.load.time", SimpleNamespace(monotonic=lambda: now))
    window = Window(groups_per_step=1, max_staleness=1, total_groups=2)
    now = 5.0
    assert window.take_wait_s() == 0.0
    taking = asyncio.create_task(window.take(1))
    await asyncio.sleep(0)
    now = 8.0
    assert window.take_wait_s() == 3.0
    now = 9.0
    await window.deliver(await window.admit(), group())
    assert window.num_ready == 1
    await taking
    assert window.num_ready == 0
    now = 20.0
    assert window.take_wait_s() == 1.0
    assert window.take_wait_s() == 0.0


async def test_a_window_that_is_paused_while_a_slot_is_waited_for_gives_it_only_when_it_goes_on():
    may_admit = asyncio.Event()
    may_admit.set()
    window = Window(groups_per_step=1, max_staleness=0, total_groups=2, open=may_admit)
    await window.deliver(await window.admit(), group())
    waiting = asyncio.create_task(window.admit())
    await asyncio.sleep(0)
    may_admit.clear()
    await window.take(1)
    await window.release(1)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    assert (window.num_held, window.is_paused) == (0, True)
    may_admit.set()
    assert await asyncio.wait_for(waiting, 5) == 1
    assert await window.admit() is None
