"""Order and overlap of the loop, with fakes and gates."""

import asyncio
import gc
import itertools
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import psutil
import pytest

from orchestrator.loop.loop import Run, StaleGroup, StepTimes, check_staleness, sampling_seed, train
from orchestrator.loop.window import Window
from records.samples import PolicyVersion, ScoringFailure, StepReport
from tests.fakes import (
    FakeJournal,
    FakeLearner,
    FakePrompts,
    FakePublisher,
    FakeRollouts,
    make_group,
    make_prompt,
    make_scored,
)


@dataclass(kw_only=True)
class GatedRun(Run):
    """Its evaluations end when the gate opens."""

    evaluation_gate: asyncio.Event = field(default_factory=asyncio.Event)


def make_run(
    events: list[str],
    *,
    steps: int,
    max_staleness: int,
    groups_per_step: int = 2,
    served: int = 0,
    checkpoint_every: int = 0,
    evaluate_every: int = 0,
) -> GatedRun:
    async def evaluate() -> None:
        events.append(f"evaluation of {run.served} begins")
        await run.evaluation_gate.wait()
        events.append(f"evaluation of {run.served} done")

    async def after_step(report: StepReport, groups: object, times: object) -> None:
        events.append(f"after {report.version}")

    rollouts = FakeRollouts(events, served)
    run = GatedRun(
        rollouts=rollouts,
        learner=FakeLearner(events, served),
        publisher=FakePublisher(rollouts),
        prompts=FakePrompts(given=served * groups_per_step),
        window=Window(
            groups_per_step=groups_per_step,
            max_staleness=max_staleness,
            total_groups=steps * groups_per_step,
            done=served * groups_per_step,
        ),
        journal=FakeJournal(),
        steps=steps,
        groups_per_step=groups_per_step,
        max_staleness=max_staleness,
        seed=0,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
        after_step=after_step,
        evaluate=evaluate,
        served=PolicyVersion(served),
    )
    return run


async def until(events: list[str], wanted: str) -> None:
    for _ in range(1000):
        if wanted in events:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{wanted!r} never happened: {events}")


async def finish(run: Run) -> None:
    """Fails where a ticket that is never given out would be waited for for ever."""
    await asyncio.wait_for(train(run), 10)


async def test_without_staleness_every_group_is_sampled_by_the_newest_policy():
    events: list[str] = []
    run = make_run(events, steps=3, max_staleness=0)
    await train(run)
    assert run.learner.seen == [(0, (0, 0)), (1, (1, 1)), (2, (2, 2))]
    assert [event for event in events if not event.startswith("sample")] == [
        event
        for version in range(3)
        for event in (
            f"learn {version} begins",
            f"send {version + 1}",
            f"publish {version + 1} begins",
            f"publish {version + 1} done",
            f"after {version + 1}",
        )
    ]


async def test_with_staleness_one_the_next_groups_are_sampled_while_the_learner_works():
    events: list[str] = []
    run = make_run(events, steps=2, max_staleness=1)
    run.learner.gate.clear()
    training = asyncio.create_task(train(run))
    await until(events, "learn 0 begins")
    await until(events, "sample 3 under 0")  # all of the second step's groups, before the first step has ended
    run.learner.gate.set()
    await training
    assert run.learner.seen == [(0, (0, 0)), (1, (0, 0))]


async def test_no_slot_is_free_before_the_version_is_served():
    events: list[str] = []
    run = make_run(events, steps=2, max_staleness=0)
    run.rollouts.publish_gate.clear()
    training = asyncio.create_task(train(run))
    await until(events, "publish 1 begins")
    for _ in range(50):
        await asyncio.sleep(0)
    assert "sample 2 under 0" not in events
    run.rollouts.publish_gate.set()
    await training
    assert "sample 2 under 1" in events


async def test_the_learner_makes_its_next_step_while_a_version_is_being_served():
    events: list[str] = []
    run = make_run(events, steps=3, max_staleness=1)
    run.rollouts.publish_gate.clear()
    training = asyncio.create_task(train(run))
    await until(events, "learn 1 begins")
    for _ in range(50):
        await asyncio.sleep(0)
    assert "publish 1 done" not in events
    assert "send 2" not in events  # versions are served one after another
    assert "sample 4 under 0" not in events  # and no slot is free before
    run.rollouts.publish_gate.set()
    await training
    assert events.index("publish 1 done") < events.index("send 2") < events.index("publish 2 done")


async def test_a_version_that_cannot_be_served_ends_the_run():
    async def receive(version: PolicyVersion) -> float:
        raise OSError("no space left")

    run = make_run([], steps=3, max_staleness=1)
    run.rollouts.receive = receive
    with pytest.raises(ExceptionGroup) as failure:
        await finish(run)
    assert failure.value.subgroup(OSError) is not None


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_a_run_that_goes_on_samples_what_the_whole_run_would_have_sampled(max_staleness):
    whole, rest = (make_run([], steps=5, max_staleness=max_staleness, served=served) for served in (0, 3))
    await finish(whole)
    await finish(rest)
    assert sampled(rest) == [6, 7, 8, 9]  # 3 steps of 2 groups are done
    assert sampled(whole) == list(range(10))
    assert rest.rollouts.seeds == [sampling_seed(0, ticket) for ticket in range(6, 10)] == whole.rollouts.seeds[6:]
    assert [version for version, _ in rest.learner.seen] == [3, 4]


def sampled(run: Run) -> list[int]:
    """The numbers of the prompts that were sampled, in this order."""
    return [int(event.split()[1]) for event in run.rollouts.events if event.startswith("sample")]


async def test_a_run_that_is_done_does_nothing():
    events: list[str] = []
    await finish(make_run(events, steps=3, max_staleness=1, served=3))
    assert events == []


async def test_a_checkpoint_is_begun_after_every_so_many_versions():
    events: list[str] = []
    await finish(make_run(events, steps=7, max_staleness=1, checkpoint_every=3))
    assert [event for event in events if event.startswith("checkpoint")] == ["checkpoint 3", "checkpoint 6"]


async def test_checkpoints_of_a_run_that_goes_on_are_of_the_same_versions():
    events: list[str] = []
    await finish(make_run(events, steps=7, max_staleness=1, served=2, checkpoint_every=3))
    assert [event for event in events if event.startswith("checkpoint")] == ["checkpoint 3", "checkpoint 6"]


async def test_a_checkpoint_is_begun_once_its_version_is_served_and_its_slots_are_free():
    events: list[str] = []
    run = make_run(events, steps=3, max_staleness=0, checkpoint_every=2)
    held: list[int] = []

    async def checkpoint() -> None:
        events.append("checkpoint")
        await until(events, "sample 4 under 2")  # the first group of step 3: a slot is free, version 2 is served
        held.append(run.window.num_held)

    run.learner.checkpoint = checkpoint
    await finish(run)
    assert held == [2]  # both of step 3
    order = [events.index(event) for event in ("publish 2 done", "after 2", "checkpoint", "learn 2 begins")]
    assert order == sorted(order)


async def test_a_checkpoint_that_fails_ends_the_run():
    async def checkpoint() -> None:
        raise OSError("no space left")

    run = make_run([], steps=3, max_staleness=1, checkpoint_every=1)
    run.learner.checkpoint = checkpoint
    with pytest.raises(ExceptionGroup) as failure:
        await train(run)
    assert failure.value.subgroup(OSError) is not None


async def test_a_scoring_failure_ends_the_run():
    async def sample(prompt, *, seed):
        raise ScoringFailure(f"{prompt.id}#{seed}.0", "the rule raised")

    run = make_run([], steps=2, max_staleness=1)
    run.rollouts.sample = sample
    with pytest.raises(ExceptionGroup) as failure:
        await train(run)
    assert failure.value.subgroup(ScoringFailure) is not None
    assert run.learner.seen == []


def test_a_group_that_is_too_old_raises():
    old = make_scored(make_group(make_prompt("7/basic/center"), version=1), [1.0, 0.0])
    check_staleness((old,), PolicyVersion(2), max_staleness=1)
    with pytest.raises(StaleGroup, match=r"7/basic/center was sampled under version 1 .* version 3"):
        check_staleness((old,), PolicyVersion(3), max_staleness=1)


def test_sampling_seeds_differ_between_groups_and_between_runs():
    seeds = {sampling_seed(run, ticket) for run in range(3) for ticket in range(100)}
    assert len(seeds) == 300
    assert sampling_seed(2, 3) == 2_000_009
    assert sampling_seed(3_000, 7) == 3_000_009_007 - 2**31  # engines take 31 bits


async def test_a_run_ends_with_a_group_that_is_too_old():
    run = make_run([], steps=2, max_staleness=0)
    run.rollouts.receive = stay_behind
    with pytest.raises(ExceptionGroup) as failed:
        await finish(run)
    assert failed.group_contains(StaleGroup, match="was sampled under version 0 and would be trained on at version 1")


async def stay_behind(version: PolicyVersion) -> float:
    return 0.0


async def test_times_of_a_step_are_differences(monkeypatch):
    clock = itertools.count(1000.0)
    monkeypatch.setattr("orchestrator.loop.loop.time", SimpleNamespace(monotonic=lambda: next(clock)))
    run = make_run([], steps=1, max_staleness=0)
    seen = []

    async def after_step(report: StepReport, groups: object, times: StepTimes) -> None:
        seen.append(times)

    run.after_step = after_step
    await finish(run)
    # Looked at 1000 and 1001, 1002 and 1003; sent at 1003 and served at 1004.
    assert seen == [StepTimes(wait_s=1.0, learn_s=1.0, publish_s=2.0, transfer_s=1.0, pause_s=0.0)]


async def test_an_evaluation_goes_on_beside_the_steps_and_the_run_ends_with_it():
    events: list[str] = []
    run = make_run(events, steps=3, max_staleness=1, evaluate_every=2)
    training = asyncio.create_task(finish(run))
    await until(events, "after 3")
    assert [event for event in events if event.startswith("evaluation")] == ["evaluation of 2 begins"]
    assert events.index("evaluation of 2 begins") > events.index("publish 2 done")
    assert not training.done()
    run.evaluation_gate.set()
    await training
    assert events[-1] == "evaluation of 3 done"  # by then


async def test_evaluations_do_not_pile_up(caplog):
    events: list[str] = []
    run = make_run(events, steps=7, max_staleness=0, evaluate_every=2)
    after_step = run.after_step

    async def end_evaluations_after_five(report: StepReport, *rest: object) -> None:
        await after_step(report, *rest)
        if report.version == 5:
            run.evaluation_gate.set()
            await until(events, "evaluation of 5 done")  # what is served now, of that which began at 2

    run.after_step = end_evaluations_after_five
    await finish(run)
    begun = [event for event in events if event.startswith("evaluation") and event.endswith("begins")]
    assert begun == ["evaluation of 2 begins", "evaluation of 6 begins"]  # 4 came while that of 2 went on
    (said,) = caplog.messages
    assert said.startswith("no evaluation of version 4: the evaluation of version 2 goes on; a larger evaluation.every")


async def test_the_last_version_is_left_to_the_evaluation_after_the_run():
    events: list[str] = []
    run = make_run(events, steps=2, max_staleness=0, evaluate_every=1)
    run.evaluation_gate.set()
    await finish(run)
    assert "evaluation of 1 done" in events
    assert "evaluation of 2 begins" not in events


async def test_an_evaluation_that_fails_ends_the_run():
    async def fail() -> None:
        raise WorkerGone

    class WorkerGone(Exception):
        pass

    run = make_run([], steps=5, max_staleness=1, evaluate_every=1)
    run.evaluate = fail
    with pytest.raises(ExceptionGroup) as error:
        await finish(run)
    assert error.group_contains(WorkerGone)


async def test_a_stopped_run_ends_with_the_step_that_is_being_made_and_loses_none():
    events: list[str] = []
    run = make_run(events, steps=9, max_staleness=1)
    after_step, enough = run.after_step, asyncio.Event()

    async def hold_the_third(report: StepReport, *rest: object) -> None:
        await after_step(report, *rest)
        if report.version == 2:
            run.learner.gate.clear()
            enough.set()

    run.after_step = hold_the_third
    training = asyncio.create_task(train(run))
    await enough.wait()
    await until(events, "learn 2 begins")
    training.cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not training.done()  # the learner's step cannot be taken back
    run.learner.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await training
    assert [step.report.version for step in run.unseen] == [3]
    assert (run.served, run.learner.version) == (2, 3)


async def test_a_run_that_waits_for_groups_stops_at_once():
    events: list[str] = []
    run = make_run(events, steps=9, max_staleness=1)
    run.rollouts.gate.clear()
    training = asyncio.create_task(train(run))
    await until(events, "sample 0 under 0")
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    assert (run.unseen, run.learner.version) == ([], 0)


@pytest.mark.slow
async def test_ten_thousand_steps_leave_nothing_behind():
    """Objects of the driver, and its memory, after 1,000 steps and after 10,000."""
    found: dict[int, tuple[int, int]] = {}

    async def after_step(report: StepReport, groups: object, times: object) -> None:
        if report.version in (1_000, 10_000):
            gc.collect()
            found[report.version] = (len(gc.get_objects()), psutil.Process().memory_info().rss)

    run = make_run(deque(maxlen=8), steps=10_000, max_staleness=1)
    run.rollouts.seeds = run.learner.seen = deque(maxlen=8)
    run.after_step = after_step
    await train(run)
    (objects, memory), (objects_later, memory_later) = found[1_000], found[10_000]
    assert objects_later - objects < 100  # 9,000 steps of 2 groups of 2 samples lie between
    assert memory_later - memory < 4 << 20
