"""A rollout worker: prompt in, version-stamped samples out.

A plain class; the orchestrator makes a Ray actor of it, whose calls interleave on one event loop. Always: it samples
only under a version that it has loaded completely. After an update that failed it refuses everything and must be
replaced.
"""

import asyncio
import logging
import time

from rollout.config import RolloutConfig
from rollout.engine import RolloutEngine, WorkerLost
from rollout.shm import SharedFiles, remove_leftovers
from tvr.records import PolicyVersion, Prompt, SampleGroup

logger = logging.getLogger(__name__)


class WeightUpdateError(WorkerLost):
    """*worker_id* could not load *version* and holds a mixture of weights; it must be replaced."""

    def __init__(self, worker_id: str, version: PolicyVersion, cause: str) -> None:
        super().__init__(worker_id, version, cause)
        self.worker_id = worker_id
        self.version = version
        self.cause = cause

    def __str__(self) -> str:
        return f"rollout worker {self.worker_id} failed to load version {self.version} and is unusable: {self.cause}"


class RolloutWorker:
    """Serves the weights in the folder *model* as version 0 until it receives others."""

    def __init__(self, config: RolloutConfig, model: str, worker_id: str) -> None:
        self.config = config
        self.model = model
        self.worker_id = worker_id
        self._engine: RolloutEngine | None = None
        self._files: SharedFiles | None = None
        self._served = PolicyVersion(0)
        self._updating = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()
        self._failure: WeightUpdateError | None = None
        self._answer_tokens = 0
        self._groups = 0
        self._in_flight: set[asyncio.Future[SampleGroup]] = set()
        self._busy_s = 0.0
        self._busy_since = 0.0

    async def ready(self) -> str:
        """Start the engine, which takes seconds to minutes; returns the worker's id. Later calls return at once."""
        if self._engine is None:
            start = time.monotonic()
            for name in remove_leftovers():
                logger.warning("removed from shared memory what a killed worker left: %s", name)
            self._files = SharedFiles(self.worker_id)
            self._engine = RolloutEngine(self.config, self.model, self._files.name)
            await self._engine.label(self._served)
            logger.info("rollout worker %s is ready after %.1f s", self.worker_id, time.monotonic() - start)
        return self.worker_id

    async def sample(self, prompt: Prompt, num_samples: int, seed: int, greedy: bool = False) -> SampleGroup:
        """*num_samples* answers to *prompt*; the same seed under the same weights gives the same tokens.

        Raises WorkerLost (EngineDied or WeightUpdateError) if the worker is, or meanwhile becomes, unusable;
        SamplingError if the engine gave up; ValueError for a prompt that cannot be asked.
        """
        await self._open.wait()
        task = asyncio.ensure_future(self._usable_engine().sample(prompt, num_samples, seed, greedy))
        if not self._in_flight:
            self._busy_since = time.monotonic()
        self._in_flight.add(task)
        try:
            group = await task
        except asyncio.CancelledError:
            if self._failure is not None:  # cancelled by `receive`, not by the caller
                raise self._refusal() from None
            raise
        finally:
            self._in_flight.remove(task)
            if not self._in_flight:
                self._busy_s += time.monotonic() - self._busy_since
        self._groups += 1
        self._answer_tokens += sum(len(sample.trace.token_ids) for sample in group.samples)
        return group

    async def receive(self, version: PolicyVersion, *buckets: bytes) -> PolicyVersion:
        """Load *version* and return the version now served.

        Each of *buckets* is what `safetensors.torch.save` makes of some tensors, named as in Hugging Face's
        `named_parameters()`; together they hold every parameter once. Answers in flight go on under the new version,
        and their spans tell, or are waited for (`inflight`). Raises ValueError, and changes nothing, if *version* is
        not newer than the served one. Raises WeightUpdateError if loading failed, which makes the worker unusable.
        """
        async with self._updating:
            engine = self._usable_engine()
            assert self._files is not None
            if version <= self._served:
                raise ValueError(f"version {version} is not newer than {self._served}, which {self.worker_id} serves")
            if not buckets:
                raise ValueError(f"version {version} came without weights")
            await self._drain()
            try:
                await engine.load_weights(version, buckets, self._files.path("weights"))
            except BaseException as error:  # a cancelled update has left a mixture as well
                self._failure = WeightUpdateError(self.worker_id, version, repr(error))
                for task in self._in_flight:  # the engine stays paused, so they would never end
                    task.cancel()
                if isinstance(error, Exception):
                    raise self._refusal() from error
                raise
            finally:
                self._open.set()
            self._served = version
            return self._served

    async def stats(self) -> dict[str, float]:
        """Totals since the start: answer tokens, groups, and seconds with at least one group in flight."""
        busy_s = self._busy_s + (time.monotonic() - self._busy_since if self._in_flight else 0.0)
        return {"answer_tokens": float(self._answer_tokens), "groups": float(self._groups), "busy_s": busy_s}

    async def shutdown(self) -> None:
        """Stop the engine and remove what it kept in shared memory."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
        if self._files is not None:
            self._files.remove()
            self._files = None

    async def _drain(self) -> None:
        """If configured, begin no answers from here on and wait for those in flight, however they end."""
        if self.config.inflight == "keep":
            return
        self._open.clear()
        try:
            if self._in_flight:
                await asyncio.wait(self._in_flight)
        except BaseException:  # cancelled: nothing was loaded, so the worker goes on
            self._open.set()
            raise

    def _usable_engine(self) -> RolloutEngine:
        if self._failure is not None:
            raise self._refusal()
        assert self._engine is not None, f"rollout worker {self.worker_id} was not made ready, or was shut down"
        return self._engine

    def _refusal(self) -> WeightUpdateError:
        """A new exception each time: raising one object from several callers would mix their tracebacks."""
        assert self._failure is not None
        return WeightUpdateError(self._failure.worker_id, self._failure.version, self._failure.cause)
