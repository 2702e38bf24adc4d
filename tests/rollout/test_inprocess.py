"""The core on a thread, with a core that does what the test says."""

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.outputs import LogprobsLists

from rollout import inprocess
from rollout.inprocess import HeldOutputs, InProcessCore


class FakeCore:
    """Every request gets one token a step, and ends with its second; a step passes the gate."""

    def __init__(self, *_: Any) -> None:
        self.scheduler = SimpleNamespace(has_requests=self.has_requests, pause_state=PauseState.UNPAUSED, running=[])
        self.gate = threading.Event()
        self.gate.set()
        self.stepping = threading.Event()
        self.requests: dict[str, int] = {}
        self.batches: list[list[str]] = []
        self.fails = False

    def has_requests(self) -> bool:
        return bool(self.requests)

    def preprocess_add_request(self, request: Any) -> tuple[Any, int]:
        return request, 0

    def add_request(self, request: Any, wave: int) -> None:
        self.requests[request.request_id] = 0

    def step_fn(self) -> tuple[dict[int, EngineCoreOutputs], bool]:
        self.stepping.set()
        assert self.gate.wait(10)
        if self.fails:
            raise ZeroDivisionError("the model")
        self.batches.append(list(self.requests))
        outputs = []
        for request_id in list(self.requests):
            self.requests[request_id] += 1
            finish = FinishReason.STOP if self.requests[request_id] == 2 else None
            outputs.append(output(request_id, self.requests[request_id], finish))
            if finish is not None:
                del self.requests[request_id]
        return {0: EngineCoreOutputs(outputs=outputs, weight_version="0")}, True

    def post_step(self, executed: bool) -> None:
        """Nothing is speculated."""

    def where(self) -> str:
        return threading.current_thread().name

    def shutdown(self) -> None:
        """Nothing is held."""


def output(request_id: str, token: int, finish: FinishReason | None = None) -> EngineCoreOutput:
    one = np.full((1, 1), token)
    logprobs = LogprobsLists(one, -one.astype(np.float32), np.zeros(1))
    return EngineCoreOutput(request_id=request_id, new_token_ids=[token], new_logprobs=logprobs, finish_reason=finish)


def request(name: str) -> Any:
    return SimpleNamespace(request_id=name, external_req_id=name, mm_features=None)


@pytest.fixture
async def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcessCore]:
    monkeypatch.setattr(inprocess, "EngineCore", FakeCore)
    client = InProcessCore(None, object, False)
    yield client
    client._core.gate.set()
    client.shutdown()


async def test_an_answer_is_handed_over_once_and_whole(core: InProcessCore):
    await core.add_request_async(request("a"))
    (answer,) = (await asyncio.wait_for(core.get_output_async(), 10)).outputs
    assert answer.new_token_ids == [1, 2]
    assert answer.new_logprobs.logprobs.tolist() == [[-1.0], [-2.0]]
    assert core.outputs_queue.empty()


async def test_requests_that_are_prepared_together_start_together(core: InProcessCore):
    for name in ("a", "b"):
        core.expect(name, 1)
    await core.add_request_async(request("a"))
    assert await core.call_utility_async("where") == "vllm-core"  # the core is idle, although it has a request
    assert core._core.batches == []
    await core.add_request_async(request("b"))
    await asyncio.wait_for(core.get_output_async(), 10)
    assert core._core.batches[0] == ["a", "b"]


async def test_a_request_that_is_given_up_keeps_nobody_waiting(core: InProcessCore):
    for name in ("a", "b"):
        core.expect(name, 1)
    await core.add_request_async(request("a"))
    core.unexpect("b")
    core.unexpect("a")
    await asyncio.wait_for(core.get_output_async(), 10)


async def test_a_cancelled_call_is_not_made_and_the_core_goes_on(core: InProcessCore):
    core._core.gate.clear()
    await core.add_request_async(request("a"))
    await asyncio.to_thread(core._core.stepping.wait, 10)
    adding = asyncio.create_task(core.add_request_async(request("b")))
    await asyncio.sleep(0)
    adding.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    core._core.gate.set()
    await asyncio.wait_for(core.get_output_async(), 10)
    assert all(batch == ["a"] for batch in core._core.batches)
    await core.add_request_async(request("c"))
    await asyncio.wait_for(core.get_output_async(), 10)


async def test_a_call_that_raises_raises_for_its_caller_alone(core: InProcessCore):
    with pytest.raises(AttributeError, match="no_such_thing"):
        await core.call_utility_async("no_such_thing")
    assert await core.call_utility_async("where") == "vllm-core"


async def test_a_step_that_raises_ends_all(core: InProcessCore):
    core._core.gate.clear()
    core._core.fails = True
    await core.add_request_async(request("a"))
    await asyncio.to_thread(core._core.stepping.wait, 10)
    waiting = asyncio.create_task(core.call_utility_async("where"))
    await asyncio.sleep(0)
    core._core.gate.set()
    with pytest.raises(EngineDeadError) as death:
        await asyncio.wait_for(core.get_output_async(), 10)
    assert isinstance(death.value.__cause__, ZeroDivisionError)
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(waiting, 10)
    with pytest.raises(EngineDeadError):
        await core.call_utility_async("where")


def test_tokens_of_different_weights_stay_apart():
    held = HeldOutputs()
    for token, version in ((1, "3"), (2, "3")):
        assert held.add(EngineCoreOutputs(outputs=[output("a", token)], weight_version=version)) == []
    old, new = held.add(EngineCoreOutputs(outputs=[output("a", 3, FinishReason.STOP)], weight_version="4"))
    assert [(each.weight_version, each.outputs[0].new_token_ids) for each in (old, new)] == [("3", [1, 2]), ("4", [3])]


def test_an_answer_that_was_dropped_leaves_nothing():
    held = HeldOutputs()
    held.add(EngineCoreOutputs(outputs=[output("a", 1), output("b", 1)], weight_version="3"))
    held.drop(["a"])
    (ended,) = held.add(EngineCoreOutputs(outputs=[output("b", 2, FinishReason.STOP)], weight_version="3"))
    assert [each.request_id for each in ended.outputs] == ["b"]
    assert held._held == {}
    assert held.first_tokens.keys() == {"b"}
