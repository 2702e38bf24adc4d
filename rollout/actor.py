"""A rollout worker: prompt in, version-stamped samples out, each scored as soon as it ends.

A plain class; the orchestrator makes a Ray actor of it, whose calls interleave on one event loop. Always: it samples
only under a version that it has loaded completely. After an update that failed it refuses everything and must be
replaced.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable
from typing import Any, Protocol

from records.manifest import Bucket, Manifest
from records.samples import Origin, PolicyVersion, Prompt, Sample, SampleGroup, Score, ScoredGroup
from rollout.config import OBJECT_STORE, RolloutConfig
from rollout.engine import RolloutEngine, WorkerLost
from rollout.shm import SharedFiles, remove_leftovers

logger = logging.getLogger(__name__)


Scored = tuple[Score, float]
"""A score, and when it was there."""


class WeightUpdateError(WorkerLost):
    """*worker_id* could not load *version* and holds a mixture of weights; it must be replaced."""

    def __init__(self, worker_id: str, version: PolicyVersion, cause: str) -> None:
        super().__init__(worker_id, version, cause)
        self.worker_id = worker_id
        self.version = version
        self.cause = cause

    def __str__(self) -> str:
        return f"rollout worker {self.worker_id} failed to load version {self.version} and is unusable: {self.cause}"


class Scorer(Protocol):
    """Where a worker has its samples scored."""

    async def score(self, gold: Any, sample: Sample) -> Score:
        """Raises ScoringFailure, and never makes a number of a failure."""
        ...


class RolloutWorker:
    """Serves the weights in the folder *model* as version 0 until it receives others; *scorer* scores its samples.

    Without a scorer it only answers.
    """

    def __init__(self, config: RolloutConfig, model: str, worker_id: str, scorer: Scorer | None = None) -> None:
        self.config = config
        self.model = model
        self.worker_id = worker_id
        self._scorer = scorer
        self._engine: RolloutEngine | None = None
        self._files: SharedFiles | None = None
        self._manifest: Manifest | None = None
        self._updating = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()
        self._failure: WeightUpdateError | None = None
        self._slots = asyncio.Semaphore(config.concurrent_prompts)
        self._in_flight: set[asyncio.Future[Any]] = set()

    async def ready(self) -> str:
        """Start the engine, which takes seconds to minutes; returns the worker's id. Later calls return at once."""
        if self._engine is None:
            start = time.monotonic()
            for name in remove_leftovers():
                logger.warning("removed from shared memory what a killed worker left: %s", name)
            self._files = SharedFiles(self.worker_id)
            self._engine = RolloutEngine(self.config, self.model, self._files.name)
            await self._engine.label(PolicyVersion(0))
            if self.config.weight_transport == OBJECT_STORE:
                await self._engine.prepare_updates({})
            logger.info("rollout worker %s is ready after %.1f s", self.worker_id, time.monotonic() - start)
        return self.worker_id

    async def join(self, init_info: dict[str, Any]) -> None:
        """With NCCL, before the first update: meet the learner. *init_info* is that of vLLM's NCCL weight transfer."""
        await self._usable_engine().prepare_updates(init_info)

    async def answer(self, prompt: Prompt) -> Sample:
        """One greedy answer. Raises what `sample` raises."""
        (sample,), _ = await self._sample(prompt, 1, seed=0, greedy=True)
        return sample

    async def sample(self, prompt: Prompt, seed: int) -> ScoredGroup:
        """G answers to *prompt*, each scored as it ends; the same seed under the same weights gives the same tokens.

        Raises WorkerLost (EngineDied or WeightUpdateError) if the worker is, or meanwhile becomes, unusable;
        SamplingError if the engine gave up; ValueError for a prompt that cannot be asked; ScoringFailure.
        """
        assert self._scorer is not None, f"rollout worker {self.worker_id} has no scorer"
        asked = time.time()
        samples, scoring = await self._sample(prompt, self.config.samples_per_prompt, seed, greedy=False)
        try:
            scores, scored = zip(*await asyncio.gather(*scoring), strict=True)
        except BaseException:
            _cancel(scoring)
            raise
        origin = Origin(worker=self.worker_id, asked=asked, scored=scored)
        return ScoredGroup(group=SampleGroup(prompt=prompt, samples=samples), scores=scores, origin=origin)

    async def receive(self, manifest: Manifest, *buckets: Bucket) -> float:
        """Load the version of *manifest*, and return the seconds in which nothing could be sampled.

        *buckets* are what the manifest says, or none where they come by NCCL. Answers in flight go on under the new
        version, and their spans tell, or are waited for (`inflight`). Raises ValueError, and changes nothing, if the
        version is older than the served one or has other tensors, or if part of it has not come or is damaged
        (DamagedWeights); OSError if shared memory has no room for it. Raises WeightUpdateError if loading failed, which
        makes the worker unusable.
        """
        version = manifest.version
        async with self._updating:
            engine = self._usable_engine()
            assert self._files is not None
            if version < self.version:
                raise ValueError(f"version {version} is older than {self.version}, which {self.worker_id} serves")
            if self._manifest is not None and (other := manifest.names ^ self._manifest.names):
                raise ValueError(
                    f"version {version} has not the tensors of {self.version}, which {self.worker_id} serves: "
                    f"{len(other)} are in one of them only, such as {min(other)}"
                )
            if self.config.weight_transport == OBJECT_STORE:
                await asyncio.to_thread(manifest.check, buckets)
            new_eyes = any("visual" in name for name in manifest.changed_since(self._manifest))
            async with engine.prepared(manifest, buckets, self._files.folder) as parts:
                await self._drain()
                pause_s = await self._load(engine.load_weights(manifest, parts, new_eyes), version)
                self._manifest = manifest
            return pause_s

    @property
    def completed(self) -> int:
        """How much the engine has done since it started; it grows as long as the engine does not hang."""
        return 0 if self._engine is None else self._engine.completed

    @property
    def has_work(self) -> bool:
        """Whether the engine has something to do: answers to sample, or a version to load."""
        return bool(self._in_flight) or self._updating.locked()

    @property
    def is_full(self) -> bool:
        """Whether as many groups are sampled as may be at once."""
        return self._slots.locked()

    @property
    def version(self) -> PolicyVersion:
        """The one that is served."""
        return PolicyVersion(0) if self._manifest is None else self._manifest.version

    async def shutdown(self) -> None:
        """Stop the engine and remove what it kept in shared memory."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
        if self._files is not None:
            self._files.remove()
            self._files = None

    async def _sample(
        self, prompt: Prompt, num_samples: int, seed: int, greedy: bool
    ) -> tuple[tuple[Sample, ...], list[asyncio.Task[Scored]]]:
        """The samples, and the scoring of each, if it is to be scored, which goes on."""
        async with self._slots:
            await self._open.wait()
            task = asyncio.ensure_future(self._collect(prompt, num_samples, seed, greedy))
            self._in_flight.add(task)
            try:
                return await task
            except asyncio.CancelledError:
                if self._failure is not None:  # cancelled by `receive`, not by the caller
                    raise self._refusal() from None
                raise
            finally:
                self._in_flight.remove(task)

    async def _collect(
        self, prompt: Prompt, num_samples: int, seed: int, greedy: bool
    ) -> tuple[tuple[Sample, ...], list[asyncio.Task[Scored]]]:
        samples: dict[int, Sample] = {}
        scoring: dict[int, asyncio.Task[Scored]] = {}
        try:
            async for index, sample in self._usable_engine().sample(prompt, num_samples, seed, greedy):
                samples[index] = sample
                if not greedy and self._scorer is not None:
                    scoring[index] = asyncio.create_task(_score(self._scorer, prompt.gold, sample))
        except BaseException:
            _cancel(scoring.values())
            raise
        assert len(samples) == num_samples, prompt.id
        return tuple(samples[index] for index in range(num_samples)), [scoring[index] for index in sorted(scoring)]

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

    async def _load(self, loading: Awaitable[float], version: PolicyVersion) -> float:
        """What *loading* returns. The worker is unusable if it fails."""
        try:
            return await loading
        except BaseException as error:  # a cancelled update has left a mixture as well
            self._failure = WeightUpdateError(self.worker_id, version, repr(error))
            for task in self._in_flight:  # the engine stays paused, so they would never end
                task.cancel()
            if isinstance(error, Exception):
                raise self._refusal() from error
            raise
        finally:
            self._open.set()

    def _usable_engine(self) -> RolloutEngine:
        if self._failure is not None:
            raise self._refusal()
        assert self._engine is not None, f"rollout worker {self.worker_id} was not made ready, or was shut down"
        return self._engine

    def _refusal(self) -> WeightUpdateError:
        """A new exception each time: raising one object from several callers would mix their tracebacks."""
        assert self._failure is not None
        return WeightUpdateError(self._failure.worker_id, self._failure.version, self._failure.cause)


async def _score(scorer: Scorer, gold: Any, sample: Sample) -> Scored:
    return await scorer.score(gold, sample), time.time()


def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
