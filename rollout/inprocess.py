"""vLLM's engine core on a thread of the worker's own process, for a CPU.

AsyncLLM always starts its core as another process and talks to it through sockets. On a CPU both would share the same
cores, and passing every step's outputs on would take a tenth of the time. Here the core runs on a thread, and what it
made of an answer is handed over at its end. Everything above, AsyncLLM and its pauses and weight updates, stays vLLM's
own. One process also means that a worker that is killed leaves no engine behind.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from copy import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm import AsyncEngineArgs
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.outputs import LogprobsLists

Call = Callable[[EngineCore], Any]


class HeldOutputs:
    """Holds back each answer's tokens until it ends or the weights change: then they come as if of one step.

    vLLM's handling of a step's outputs costs as much for one token as for a whole answer, and nobody reads them before.
    """

    def __init__(self) -> None:
        self.first_tokens: dict[str, float] = {}
        """When each answer's was there, in seconds since 1970; who has asked for the answer takes it out."""
        self._held: dict[str, list[EngineCoreOutput]] = {}
        self._weight_version: str | None = None

    def add(self, step: EngineCoreOutputs) -> list[EngineCoreOutputs]:
        """The outputs of one step; returns what is to be handed on now."""
        ready = []
        if step.weight_version != self._weight_version:
            if self._held:  # tokens of different weights must not be taken for one step's
                outputs = [_joined(parts) for parts in self._held.values()]
                ready.append(EngineCoreOutputs(outputs=outputs, weight_version=self._weight_version))
                self._held = {}
            self._weight_version = step.weight_version
        for output in step.outputs:
            self.first_tokens.setdefault(output.request_id, time.time())
            self._held.setdefault(output.request_id, []).append(output)
        ended = [output.request_id for output in step.outputs if output.finished]
        if ended:
            step.outputs = [_joined(self._held.pop(request_id)) for request_id in ended]
            ready.append(step)
        return ready

    def drop(self, request_ids: list[str]) -> None:
        """Of answers that nobody wants any more."""
        for request_id in request_ids:
            self._held.pop(request_id, None)
            self.first_tokens.pop(request_id, None)


def _joined(parts: list[EngineCoreOutput]) -> EngineCoreOutput:
    """The last part with the tokens and log-probs of all."""
    last = parts[-1]
    last.new_token_ids = [token for part in parts for token in part.new_token_ids]
    logprobs = [part.new_logprobs for part in parts if part.new_logprobs is not None]
    if logprobs:  # an answer that was given up may have none
        last.new_logprobs = LogprobsLists(
            np.concatenate([each.logprob_token_ids for each in logprobs]),
            np.concatenate([each.logprobs for each in logprobs]),
            np.concatenate([each.sampled_token_ranks for each in logprobs]),
        )
    return last


def start_in_process(args: AsyncEngineArgs) -> AsyncLLM:
    """AsyncLLM whose core is a thread. Call it inside the event loop that will use it; it blocks for seconds."""
    makes_processes = EngineCoreClient.__dict__["make_async_mp_client"]
    EngineCoreClient.make_async_mp_client = InProcessCore  # vLLM has no setting for it
    try:
        return AsyncLLM.from_engine_args(args)
    finally:
        EngineCoreClient.make_async_mp_client = makes_processes


class InProcessCore(AsyncMPClient):
    """What AsyncLLM sees of the core. Utilities that AsyncMPClient sends to another process run on the thread."""

    def __init__(self, vllm_config: Any, executor_class: type, log_stats: bool, *_: Any, **__: Any) -> None:
        self.vllm_config = vllm_config
        self.engine_ranks_managed = [0]
        self.resources = SimpleNamespace(engine_dead=False)
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[Call, Future[Any]] | None] = queue.SimpleQueue()
        self._core = EngineCore(vllm_config, executor_class, log_stats)
        self._held = HeldOutputs()
        self.steps = 0
        self._expected: dict[str, int] = {}
        self._answers: dict[str, list[str]] = {}
        self._thread = threading.Thread(target=self._run, name="vllm-core", daemon=True)
        self._thread.start()

    async def get_output_async(self) -> Any:
        outputs = await self.outputs_queue.get()
        if isinstance(outputs, Exception):
            raise outputs
        return outputs

    def expect(self, request_id: str, num_answers: int) -> None:
        """A request is being prepared. An idle core waits for it, so that prompts that come together start together:
        alone, each would cost a step of its own. Call `unexpect` in the end, however it ends."""
        self._expected[request_id] = num_answers
        self._answers[request_id] = []

    def unexpect(self, request_id: str) -> None:
        if self._expected.pop(request_id, None):
            self._calls.put((lambda core: None, Future()))  # so that the core looks again
        for answer in self._answers.pop(request_id, ()):
            self._held.first_tokens.pop(answer, None)

    def first_token_at(self, request_id: str, index: int) -> float:
        """When the first token of answer *index* to an expected request was there, in seconds since 1970."""
        return self._held.first_tokens[self._answers[request_id][index]]

    async def add_request_async(self, request: Any) -> None:
        # The core writes into a request's features. Siblings share theirs until they are sent to another process, which
        # makes a copy for each; without, a sibling that is frozen by an update could not find its pictures again.
        request.mm_features = request.mm_features and [copy(feature) for feature in request.mm_features]
        if request.external_req_id in self._answers:  # siblings come in order
            self._answers[request.external_req_id].append(request.request_id)
        if request.external_req_id in self._expected:
            self._expected[request.external_req_id] -= 1
            if not self._expected[request.external_req_id]:
                del self._expected[request.external_req_id]
        await self._on_thread(lambda core: core.add_request(*core.preprocess_add_request(request)))

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        def abort(core: EngineCore) -> None:
            core.abort_requests(request_ids)
            self._held.drop(request_ids)

        if request_ids and not self.resources.engine_dead:
            await self._on_thread(abort)

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        return await self._on_thread(lambda core: getattr(core, method)(*args))

    async def call_utility_all_async(self, method: str, *args: Any) -> list[Any]:
        return [await self.call_utility_async(method, *args)]

    async def call_utility_consensus_async(self, method: str, *args: Any) -> Any:
        return await self.call_utility_async(method, *args)

    def shutdown(self, timeout: float | None = None) -> None:
        """Return when the thread has ended and the core has freed what it held."""
        if self._thread.is_alive():
            self._calls.put(None)
            self._thread.join()
            self._core.shutdown()

    def _on_thread(self, call: Call) -> "asyncio.Future[Any]":
        """The result of *call*, made between two steps of the core; cancelled before that, it is not made at all."""
        if self.resources.engine_dead or not self._thread.is_alive():
            raise EngineDeadError
        done: Future[Any] = Future()
        self._calls.put((call, done))
        if self.resources.engine_dead:  # meanwhile, perhaps after the thread emptied the queue
            self._fail_calls()
        return asyncio.wrap_future(done)

    def _run(self) -> None:
        core = self._core
        try:
            while True:
                while not self._calls.empty() or not self._has_work():
                    asked = self._calls.get()
                    if asked is None:
                        return
                    self._make(*asked)
                outputs, executed = core.step_fn()
                core.post_step(executed)
                self.steps += 1
                for ended in self._held.add(outputs[0]) if outputs else ():
                    self._loop.call_soon_threadsafe(self.outputs_queue.put_nowait, ended)
        except Exception as error:
            self.resources.engine_dead = True
            self._fail_calls()
            dead = EngineDeadError()
            dead.__cause__ = error
            self._loop.call_soon_threadsafe(self.outputs_queue.put_nowait, dead)

    def _make(self, call: Call, done: "Future[Any]") -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(call(self._core))
        except Exception as error:  # the caller's, not the core's
            done.set_exception(error)

    def _fail_calls(self) -> None:
        with contextlib.suppress(queue.Empty):
            while asked := self._calls.get_nowait():
                if asked[1].set_running_or_notify_cancel():
                    asked[1].set_exception(EngineDeadError())

    def _has_work(self) -> bool:
        scheduler = self._core.scheduler
        if scheduler.pause_state == PauseState.PAUSED_ALL or (self._expected and not scheduler.running):
            return False
        return scheduler.has_requests()
