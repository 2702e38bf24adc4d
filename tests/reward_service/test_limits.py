"""How long a rule may work, and how much memory a worker may hold; what becomes of a worker that exceeds either."""

import asyncio
import pickle
import threading
from collections.abc import Iterator

import psutil
import pytest
from pydantic import ValidationError

from orchestrator.config import ScoringConfig, for_task
from records.samples import Score, ScoringFailure
from reward_service.actor import MEMORY_LOOK_S, Reply, RewardWorker, WorkerSpent
from reward_service.limits import resident_mib
from tasks.tvr.language.gold import Gold
from tasks.tvr.rules import StarOptions
from tasks.tvr.task import TASK
from tests.fakes import GOLD

HERE = "tests.reward_service.test_limits"
SHORT_S = 0.2
ROOM_MIB = 50

GATE, TAP = threading.Event(), threading.Event()
"""What the rule below waits for, before it ends and before it fills the memory."""
HELD: list[bytearray] = []
LIMITS_MIB: list[int] = []


def rule(reply: str, truth: Gold) -> dict[str, float]:
    if reply == "wait":
        assert GATE.wait(60)
    while reply == "spin" and not GATE.is_set():
        pass
    if reply == "fill":
        assert TAP.wait(60)
        fill()
        assert GATE.wait(60)
    if reply == "give up":
        raise TimeoutError("the judge did not answer")
    return {"length": float(len(reply))}


def fill() -> None:
    """Clearly above the last limit: what other tests have left may be given back to the system at any time."""
    while resident_mib() <= LIMITS_MIB[-1] + ROOM_MIB:
        HELD.append(bytearray(b"1") * (ROOM_MIB * 2**20))


@pytest.fixture(autouse=True)
def closed_gates() -> Iterator[None]:
    GATE.clear()
    TAP.clear()
    yield
    TAP.set()
    GATE.set()
    HELD.clear()


def make_worker(concurrent_samples: int = 4, rule_timeout_s: float = 60.0, memory_mib: int = 2**20) -> RewardWorker:
    return RewardWorker("tvr", f"{HERE}:rule", StarOptions(), concurrent_samples, rule_timeout_s, memory_mib)


def a_bit_more() -> int:
    LIMITS_MIB.append(int(resident_mib()) + ROOM_MIB)
    return LIMITS_MIB[-1]


def replies(*texts: str) -> list[Reply]:
    return [Reply(sample_id=f"1/{at}", text=text, gold=GOLD) for at, text in enumerate(texts)]


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("text", ["wait", "spin"])
async def test_a_sample_that_takes_too_long_is_named_with_the_limit_and_where_it_was(text):
    worker = make_worker(rule_timeout_s=SHORT_S)
    async with asyncio.timeout(30):
        other, late = await worker.score(replies("abc", text))
    assert isinstance(other, Score)
    assert other.total == 3.0
    assert isinstance(late, ScoringFailure)
    assert late.sample_id == "1/1"
    assert f"the rule '{HERE}:rule' worked on it for more than 0.2 s, which reward_service.rule_timeout_s" in late.cause
    assert "test_limits.py" in late.cause  # the stack of its thread
    condition = await worker.condition()
    assert condition is not None
    assert condition.startswith("sample 1/1: the rule")


async def test_samples_that_are_late_together_are_all_named_and_the_first_is_the_cause():
    worker = make_worker(rule_timeout_s=SHORT_S)
    failures = await worker.score(replies("wait", "wait", "wait"))
    assert [type(failure) for failure in failures] == [ScoringFailure] * 3
    condition = await worker.condition()
    assert condition is not None
    assert condition.startswith("sample 1/0: ")


async def test_a_rule_within_its_limits_leaves_its_worker_fit():
    worker = make_worker(rule_timeout_s=60.0, memory_mib=a_bit_more())
    for _ in range(2):
        assert [score.total for score in await worker.score(replies("abc", "de"))] == [3.0, 2.0]
        assert await worker.condition() is None


async def test_a_rule_that_itself_gives_up_is_a_failure_and_no_cause_to_replace_its_worker():
    worker = make_worker(rule_timeout_s=SHORT_S)
    (failure,) = await worker.score(replies("give up"))
    assert isinstance(failure, ScoringFailure)
    assert "TimeoutError: the judge did not answer" in failure.cause
    assert await worker.condition() is None


async def test_a_spent_worker_gives_back_at_once_what_has_not_ended_and_refuses_what_comes():
    worker = make_worker(concurrent_samples=2, rule_timeout_s=0.5)
    first = asyncio.create_task(worker.score(replies("wait")))
    await settle()
    worker._rule_timeout_s = 60.0  # for what begins from here on
    second = asyncio.create_task(worker.score(replies("abc", "wait", "abc")))
    assert isinstance((await first)[0], ScoringFailure)
    with pytest.raises(WorkerSpent, match="this reward worker scores no more: sample 1/0: the rule"):
        await worker.score(replies("abc"))
    ended, at_work, waiting = await second
    assert isinstance(ended, Score)
    assert isinstance(at_work, WorkerSpent)
    assert isinstance(waiting, WorkerSpent)
    await settle()
    assert await worker.progress() == (4, 0)


async def test_a_call_of_which_nothing_has_ended_is_refused_as_a_whole():
    worker = make_worker(concurrent_samples=1, rule_timeout_s=SHORT_S)
    first = asyncio.create_task(worker.score(replies("wait")))
    await settle()
    with pytest.raises(WorkerSpent):
        await worker.score(replies("abc", "de"))  # there is no place for them
    assert isinstance((await first)[0], ScoringFailure)


async def test_a_worker_that_holds_too_much_names_the_samples_at_work_and_gives_them_back():
    worker = make_worker(concurrent_samples=2, memory_mib=(limit := a_bit_more()))
    await worker.score(replies("abc"))
    await asyncio.sleep(2 * MEMORY_LOOK_S)
    calls = [asyncio.create_task(worker.score(replies(*texts))) for texts in (["fill", "wait"], ["abc"])]
    await asyncio.sleep(2 * MEMORY_LOOK_S)
    assert not any(call.done() for call in calls)
    TAP.set()
    for call in calls:
        with pytest.raises(WorkerSpent, match=r"Samples at work: 1/0, 1/1$"):
            await call
    condition = await worker.condition()
    assert condition is not None
    assert f"reward_service.memory_mib allows {limit}; raise that, or have the rule '{HERE}:rule' keep" in condition


async def test_what_is_kept_after_a_sample_counts_too():
    worker = make_worker(memory_mib=a_bit_more())
    await worker.score(replies("abc"))
    await asyncio.sleep(2 * MEMORY_LOOK_S)
    assert await worker.condition() is None
    fill()
    condition = await worker.condition()
    assert condition is not None
    assert condition.endswith("Samples at work: none")


def test_the_memory_is_that_which_the_system_says():
    assert resident_mib() == pytest.approx(psutil.Process().memory_info().rss / 2**20, abs=5)


def test_a_memory_limit_below_what_a_worker_needs_is_refused_at_the_start():
    with pytest.raises(ValueError, match=r"memory_mib is 1, and a worker holds \d+ MiB before its first sample; raise"):
        make_worker(memory_mib=1)


async def test_progress_counts_what_has_ended_however_it_ended_and_what_is_there():
    worker = make_worker(concurrent_samples=2)
    assert await worker.progress() == (0, 0)
    await worker.score(replies("abc", "give up"))
    assert await worker.progress() == (2, 0)
    call = asyncio.create_task(worker.score(replies("wait", "wait", "wait")))
    await settle()
    assert await worker.progress() == (2, 3)  # two at work, one waits
    GATE.set()
    await call
    assert await worker.progress() == (5, 0)


def test_what_refuses_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(WorkerSpent("this reward worker scores no more: why")))
    assert isinstance(error, WorkerSpent)
    assert str(error) == "this reward worker scores no more: why"


@pytest.mark.parametrize(
    "setting",
    [{"rule_timeout_s": 0}, {"rule_timeout_s": 60}, {"timeout_s": 20}, {"memory_mib": 0}, {"memory_mib": 1.5}],
)
def test_a_limit_that_is_none_is_refused(setting):
    config = for_task(ScoringConfig, TASK).model_fields["reward_service"].annotation
    assert (config().rule_timeout_s, config().timeout_s, config().memory_mib) == (30.0, 60.0, 2048)
    with pytest.raises(ValidationError):
        config(**setting)
