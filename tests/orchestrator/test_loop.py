"""Order and overlap of the loop, with fakes and gates."""

import asyncio

import pytest

from orchestrator.loop import Run, StaleGroup, check_staleness, sampling_seed, train
from orchestrator.window import Window
from tests.fakes import FakeLearner, FakePrompts, FakeRollouts, FakeScorer, make_group, make_prompt, make_scored
from tvr.records import PolicyVersion, ScoringFailure


def make_run(events: list[str], *, steps: int, max_staleness: int, groups_per_step: int = 2) -> Run:
    return Run(
        rollouts=FakeRollouts(events),
        scorer=FakeScorer(),
        learner=FakeLearner(events),
        prompts=FakePrompts(),
        window=Window(
            groups_per_step=groups_per_step, max_staleness=max_staleness, total_groups=steps * groups_per_step
        ),
        steps=steps,
        groups_per_step=groups_per_step,
        max_staleness=max_staleness,
        seed=0,
        checkpoint_every=0,
        after_step=lambda report, groups, times: events.append(f"after {report.version}"),
    )


async def until(events: list[str], wanted: str) -> None:
    for _ in range(1000):
        if wanted in events:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{wanted!r} never happened: {events}")


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


async def test_a_scoring_failure_ends_the_run():
    class FailingScorer:
        async def score(self, group):
            raise ScoringFailure(group.samples[0].id, "the rule raised")

    run = make_run([], steps=2, max_staleness=1)
    run.scorer = FailingScorer()
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
