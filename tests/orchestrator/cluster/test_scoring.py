"""Reward workers as Ray actors, asked as rollout workers ask them; and pictures by reference."""

import asyncio
import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray

from orchestrator.cluster.pictures import attached, detached, reference, store
from orchestrator.cluster.scorer import RayScorer
from records.samples import Sample, Score, ScoringFailure, StoredPictures
from reward_service.actor import RewardWorker
from tasks.tvr.language.gold import Gold
from tasks.tvr.rules import StarOptions
from tests.fakes import GOLD, make_group, make_prompt

pytestmark = pytest.mark.slow
HERE = "tests.orchestrator.cluster.test_scoring"


def slow(reply: str, truth: Gold) -> dict[str, float]:
    time.sleep(1.0)  # a judge that takes its time
    return {"length": float(len(reply))}


def picky(reply: str, truth: Gold) -> dict[str, float]:
    if reply == "die":
        os._exit(1)
    if reply == "hang":
        time.sleep(1000)
    if reply == "raise":
        raise ZeroDivisionError(reply)
    return {"length": float(len(reply))}


@pytest.fixture(scope="module", autouse=True)
def a_local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def scorer(rule: str, concurrent_samples: int = 16, timeout_s: float = 60.0) -> RayScorer:
    """As a rollout worker has it: a copy of the driver's."""
    worker = ray.remote(num_cpus=0, max_concurrency=1000)(RewardWorker)
    actors = [worker.remote("tvr", rule, StarOptions(), concurrent_samples)]
    named = {f"reward-{number}": actor for number, actor in enumerate(actors)}
    return pickle.loads(ray.cloudpickle.dumps(RayScorer(named, timeout_s)))


def samples(*texts: str) -> list[Sample]:
    """One for each text, in order."""
    prompt = make_prompt("0/basic/center")
    groups = [make_group(prompt, version=0, num_samples=1, reply=text) for text in texts]
    return [
        Sample(id=f"0#{number}", trace=group.samples[0].trace, text=group.samples[0].text)
        for number, group in enumerate(groups)
    ]


async def score_all(scoring: RayScorer, *texts: str) -> list[Score | BaseException]:
    return await asyncio.gather(*(scoring.score(GOLD, each) for each in samples(*texts)), return_exceptions=True)


async def test_a_slow_rule_delays_no_other_sample_until_the_pool_is_full_and_then_says_so():
    replies = ["x" * (1 + number) for number in range(32)]
    for places, is_full in ((32, False), (8, True)):
        scoring = scorer(rule=f"{HERE}:slow", concurrent_samples=places)
        (actor,) = scoring._actors.values()
        await actor.load.remote()  # it has started
        scores = await score_all(scoring, *replies)
        assert [score.total for score in scores] == [1 + number for number in range(32)]
        load = await actor.load.remote()
        assert (load.full_s > 0) == is_full
        assert (load.longest_wait_s > 1.0) == is_full  # for a place that another sample had for a second


async def test_a_sample_that_fails_fails_alone_and_by_name():
    scores = await score_all(scorer(rule=f"{HERE}:picky"), "a", "raise", "bcd")
    assert [scores[0].total, scores[2].total] == [1.0, 3.0]
    assert isinstance(scores[1], ScoringFailure)
    assert scores[1].sample_id == "0#1"
    assert "ZeroDivisionError" in scores[1].cause


async def test_a_sample_that_no_worker_answers_for_in_time_fails_by_name():
    scores = await score_all(scorer(rule=f"{HERE}:picky", timeout_s=1.0), "hang")
    assert isinstance(scores[0], ScoringFailure)
    assert scores[0].sample_id == "0#0"
    assert "did not answer within 1 s" in scores[0].cause


async def until_lost(scoring: RayScorer, name: str) -> None:
    while name in scoring._actors:  # noqa: ASYNC110 - Ray tells when
        await asyncio.sleep(0.01)


async def test_samples_of_a_worker_that_dies_are_scored_by_another_and_what_ends_each_fails_by_name():
    scoring = scorer(rule=f"{HERE}:picky")
    killed = asyncio.create_task(score_all(scoring, "die"))
    await until_lost(scoring, "reward-0")
    others = asyncio.create_task(score_all(scoring, "abc"))
    await asyncio.sleep(0.1)
    assert not others.done()  # until there is somebody
    for name in ("reward-1", "reward-2"):
        scoring.use({"reward-0": None, name: scorer(rule=f"{HERE}:picky")._actors["reward-0"]})
        await until_lost(scoring, name)
    (failed,) = await killed
    assert isinstance(failed, ScoringFailure)
    assert failed.sample_id == "0#0"
    assert "died" in failed.cause
    scoring.use({"reward-3": scorer(rule=f"{HERE}:picky")._actors["reward-0"]})
    assert [score.total for score in await others] == [3.0]


def test_pictures_lie_in_the_object_store_and_not_in_what_is_sent():
    prompt = replace(make_prompt("0/basic/center"), images=(b"i" * 9999, b"f" * 9999))
    stored = store(prompt)
    sent = pickle.dumps(detached(stored))
    assert len(sent) < 5000
    assert pickle.loads(sent).images == StoredPictures(reference=None)
    with pytest.raises(ValueError, match="0/basic/center came without its pictures"):
        _ = stored.pictures
    assert attached(pickle.loads(sent), ray.get(reference(stored))) == prompt
