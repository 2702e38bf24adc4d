"""vLLM's asynchronous engine behind three verbs: sample, load weights, shut down.

The only file that imports vllm to generate, and only when an engine is started. Always: what it returns was sampled
under the versions that its spans name, with log-probs of the policy at the run's temperature; anything that did not end
by the end token or by length is an error, never a sample. Written for vLLM 0.32; not yet run on a GPU.
"""

import hashlib
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from records.manifest import Bucket, Manifest
from records.pictures import check_placeholders, decode_all
from records.samples import PolicyVersion, Prompt, Sample, SampleTimes, Trace, VersionSpan
from rollout.config import NCCL, RolloutConfig
from rollout.orphan import adopt_engine
from rollout.weight_files import files_on_node

logger = logging.getLogger(__name__)

GPU_BATCHED_TOKENS = 8192
"""Of prompts, a step. vLLM's default here is 2048, and a new version has the keys of every answer computed again."""

# On a CPU. Smaller blocks than the default of 128 tokens let the siblings of a group share more of a short prompt.
CPU_BLOCK_TOKENS = 32
CPU_BATCHED_TOKENS = 4096

# A CPU has one worker per engine, so it needs no process of its own; and vLLM compiles small functions at the first
# request even when told to run eagerly, which takes seconds and a C++ compiler.
CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}


class SamplingError(Exception):
    """The engine gave up on a prompt: *reason* is its finish reason, for example `abort`. There is no sample in it."""

    def __init__(self, prompt_id: str, reason: str) -> None:
        super().__init__(prompt_id, reason)
        self.prompt_id = prompt_id
        self.reason = reason

    def __str__(self) -> str:
        return f"prompt {self.prompt_id} was not answered: the engine ended with {self.reason}"


class WorkerLost(Exception):
    """The worker cannot go on and must be replaced; what it was asked can be asked of another."""


class EngineDied(WorkerLost):
    """vLLM's engine ended. Its message is vLLM's."""


class RolloutEngine:
    """One engine. Build it inside the event loop that will use it; it blocks for seconds.

    *picture_cache_name* names its file in shared memory.
    """

    def __init__(self, config: RolloutConfig, model: str, picture_cache_name: str) -> None:
        from transformers import AutoProcessor

        self.config = config
        self._processor = AutoProcessor.from_pretrained(model)
        self._llm = _start_vllm(config, model, picture_cache_name)
        self._is_in_process = on_cpu()
        self._request_ids = itertools.count()
        self._warned_of_room = False
        self._parts_loaded = 0

    @property
    def completed(self) -> int:
        """Steps of the engine of which something has come, and parts of versions that it has loaded."""
        return self._llm.engine_core.steps + self._parts_loaded

    async def label(self, version: PolicyVersion) -> None:
        """Say which version the loaded weights are."""
        await self._llm.update_weight_version(str(version))

    async def prepare_updates(self, init_info: dict[str, Any]) -> None:
        """Once, before the first update; *init_info* is the transport's, for NCCL where to meet."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def sample(
        self, prompt: Prompt, num_samples: int, seed: int, greedy: bool
    ) -> AsyncIterator[tuple[int, Sample]]:
        """*num_samples* answers to *prompt*, siblings of one request: index and sample of each as soon as it ends.

        Cancelling the caller aborts the request. Raises EngineDied, SamplingError, or ValueError for a prompt that
        cannot be asked.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        params = self._sampling_params(prompt, num_samples, seed, greedy)
        request_id = f"{prompt.id}#{seed}#{next(self._request_ids)}"
        prompt_token_ids: np.ndarray | None = None
        begun: dict[int, Completion] = {}
        if self._is_in_process:
            self._llm.engine_core.expect(request_id, num_samples)
        try:
            asked = build_request(prompt, self._processor, request_id)
            (request,) = await self._llm.renderer.render_cmpl_async([asked])
            self._check_room(prompt, len(request["prompt_token_ids"]))
            with kept_pictures(self._llm.renderer.mm_processor_cache, request, num_samples):
                async for output in self._llm.generate(request, params, request_id):
                    if prompt_token_ids is None:
                        prompt_token_ids = np.asarray(output.prompt_token_ids, dtype=np.int32)
                    for part in output.outputs:
                        completion = begun.setdefault(part.index, Completion())
                        completion.add(part)
                        if part.finish_reason is not None:
                            if self._is_in_process:
                                completion.began = self._llm.engine_core.first_token_at(request_id, part.index)
                            yield part.index, self._to_sample(prompt, seed, prompt_token_ids, part, completion)
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        except VLLMClientError as error:
            raise ValueError(f"prompt {prompt.id} cannot be asked: {error}") from error
        finally:
            if self._is_in_process:
                self._llm.engine_core.unexpect(request_id)

    @asynccontextmanager
    async def prepared(
        self, manifest: Manifest, buckets: Sequence[Bucket], folder: Path
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """What vLLM is told of each part of an update, true for as long as this lasts; sampling goes on.

        *buckets* are those of the object store; there are none where the engine's own workers fetch them. To an engine
        in a process of its own they go by files in *folder*. Raises OSError if it has no room.
        """
        if self.config.weight_transport == NCCL:
            tensors = manifest.tensors
            yield [
                {
                    "names": [info.name for info in tensors],
                    "dtype_names": [info.dtype for info in tensors],
                    "shapes": [list(info.shape) for info in tensors],
                }
            ]
            return
        described = [
            {"tensors": [(info.name, info.dtype, list(info.shape)) for info in infos]} for infos in manifest.buckets
        ]
        if self._is_in_process:
            yield [part | {"arrays": bucket} for part, bucket in zip(described, buckets, strict=True)]
            return
        async with files_on_node(manifest, buckets, folder) as paths:
            yield [part | {"path": str(path)} for part, path in zip(described, paths, strict=True)]

    async def load_weights(self, manifest: Manifest, parts: Sequence[dict[str, Any]], new_eyes: bool) -> float:
        """Serve the version of *manifest*, whose *parts* are `prepared`; returns the seconds in which nothing was
        sampled.

        *new_eyes*: the vision tower has changed, so that pictures must be encoded again. Answers in flight freeze, then
        go on under the new version as if it had sampled them from the start: their tokens stay, their keys and values
        are computed again. If this raises, the engine stays paused and its weights are a mixture: it must not be used
        again.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        # Not AsyncLLM's own pause: it also sleeps 20 ms. And not clear_cache=True: that drops preprocessed pictures as
        # well, which do not depend on weights and which requests still in the queue hold by address.
        await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)
        began = time.monotonic()
        await self._llm.start_weight_update()
        for part in parts:
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info=part))
            self._parts_loaded += 1
        await self._llm.collective_rpc("check_update", args=(manifest.is_whole,))
        if not await self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("the engine kept keys and values of the old weights")
        if new_eyes:
            await self._llm.reset_encoder_cache()
        await self._llm.finish_weight_update(weight_version=str(manifest.version))
        await self._llm.resume_generation()
        return time.monotonic() - began

    def shutdown(self) -> None:
        self._llm.shutdown()
        del self._llm  # vLLM's own clean-up fails if it happens only when the interpreter ends

    def _check_room(self, prompt: Prompt, num_tokens: int) -> None:
        room, wanted = answer_room(prompt.id, num_tokens, self.config.max_model_len), self.config.max_answer_tokens
        if room < wanted and not self._warned_of_room:
            self._warned_of_room = True  # once: there may be thousands
            logger.warning(
                "prompt %s leaves room for %d answer tokens, fewer than max_answer_tokens %d; raise max_model_len %d",
                *(prompt.id, room, wanted, self.config.max_model_len),
            )

    def _sampling_params(self, prompt: Prompt, num_samples: int, seed: int, greedy: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if greedy and num_samples != 1:
            raise ValueError(f"greedy decoding has one answer; num_samples is {num_samples}")
        return SamplingParams(
            n=num_samples,
            seed=engine_seed(prompt.id, seed),
            temperature=0.0 if greedy else self.config.temperature,
            max_tokens=self.config.max_answer_tokens,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            # FINAL_ONLY would keep each answer until the last sibling ends. This tells of its first token and its end
            # (an engine in the process of its end alone).
            output_kind=RequestOutputKind.DELTA,
            stream_interval=self.config.max_answer_tokens,
        )

    def _to_sample(
        self, prompt: Prompt, seed: int, prompt_token_ids: np.ndarray, last: Any, completion: "Completion"
    ) -> Sample:
        """*last* is the part of *completion* that ended it."""
        if last.finish_reason not in ("stop", "length"):
            raise SamplingError(prompt.id, str(last.finish_reason))
        trace = Trace(
            prompt_token_ids=prompt_token_ids,
            token_ids=np.asarray(completion.token_ids, dtype=np.int32),
            logprobs=np.asarray(completion.logprobs, dtype=np.float32),
            versions=tuple(
                VersionSpan(version=PolicyVersion(int(span.version)), start=span.start, end=span.end)
                for span in last.weight_versions
            ),
            finish=last.finish_reason,
        )
        text = self._processor.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        times = SampleTimes(first_token=completion.began, ended=time.time())
        return Sample(id=f"{prompt.id}#{seed}.{last.index}", trace=trace, text=text, times=times)


@dataclass(slots=True)
class Completion:
    """Tokens of one answer and their log-probs, as far as they have come; *began* when the first of them came here."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.time)

    def add(self, part: Any) -> None:
        """*part* is vLLM's CompletionOutput, with the tokens since the last one."""
        # One log-prob a token; otherwise the two lists could not be told to belong together.
        assert list(part.logprobs.token_ids) == list(part.token_ids)
        self.token_ids.extend(part.token_ids)
        self.logprobs.extend(part.logprobs.logprobs)


def build_request(prompt: Prompt, processor: Any, request_id: str) -> dict[str, Any]:
    """The engine's request for *prompt*: token ids with one placeholder a picture (the engine expands them) and the
    decoded pictures, if it has any.

    vLLM knows pictures by *request_id*, not by what they show: each request has its own copy in the ring, see
    `kept_pictures`. Raises ValueError, naming the prompt, if the two do not match or a picture cannot be read.
    """
    text = processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
    # The template has written every special token.
    token_ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    # The engine itself does not notice too many.
    check_placeholders(prompt, token_ids.count(processor.tokenizer.convert_tokens_to_ids(processor.image_token)))
    pictures = decode_all(prompt)
    if not pictures:
        return {"prompt_token_ids": token_ids}
    return {
        "prompt_token_ids": token_ids,
        "multi_modal_data": {"image": pictures},
        "multi_modal_uuids": {"image": [f"{request_id}/{number}" for number in range(len(pictures))]},
    }


@contextmanager
def kept_pictures(cache: Any, request: Any, num_samples: int) -> Iterator[None]:
    """Within it, the pictures of the rendered *request* stay in vLLM's ring until all siblings have read them.

    vLLM lets them go when as many have read them as requests asked for them, and ends if one is overwritten that a
    sibling has yet to read: it counts one reader a request, and there are *num_samples*.
    """
    if request["type"] != "multimodal":
        yield
        return
    ring, keys = cache._shm_cache, request["mm_hashes"]["image"]
    places = [ring.key_index[key][1] for key in keys if key in ring.key_index]  # one too large for it is not there
    for place in places:
        ring.writer_flag[place] += num_samples - 1
    try:
        yield
    except BaseException:
        for place in places:  # siblings that were given up may not have read them, and will not
            if place in ring.writer_flag:
                ring.writer_flag[place] = 0
        raise


def answer_room(prompt_id: str, num_tokens: int, max_model_len: int) -> int:
    """Tokens that an answer can have behind a prompt of *num_tokens*, pictures included. Raises ValueError for none."""
    if num_tokens >= max_model_len:
        raise ValueError(
            f"prompt {prompt_id} has {num_tokens} tokens with its pictures, and max_model_len {max_model_len} leaves "
            "no room for an answer; raise it, or make the pictures smaller"
        )
    return max_model_len - num_tokens


def engine_seed(prompt_id: str, seed: int) -> int:
    """A seed of its own for each (prompt, *seed*). vLLM gives sibling *i* the seed plus *i*, so that neighbouring seeds
    used as they are would share samples."""
    digest = hashlib.blake2b(f"{prompt_id}#{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def on_cpu() -> bool:
    """Whether vLLM runs on a CPU here."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _start_vllm(config: RolloutConfig, model: str, picture_cache_name: str) -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    adopt_engine()
    os.environ["VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME"] = picture_cache_name
    if on_cpu():
        if config.kv_cache_mib is None:
            raise ValueError("rollout.kv_cache_mib is not set; on a CPU give the engine a size, for example 64")
        # Before the rest of vllm is imported, which reads them.
        os.environ.update(CPU_ENVIRONMENT)
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    args = AsyncEngineArgs(**engine_arguments(config, model))
    if on_cpu():
        from rollout.inprocess import start_in_process

        return start_in_process(args)
    llm = AsyncLLM.from_engine_args(args)
    count_steps(llm.engine_core)
    return llm


def count_steps(core: Any) -> None:
    """Have *core*, vLLM's client of an engine in a process of its own, count in `steps` the outputs that have come."""
    get_output = core.get_output_async
    core.steps = 0

    async def counted() -> Any:
        outputs = await get_output()
        core.steps += 1
        return outputs

    core.get_output_async = counted


def picture_cache_bytes(config: RolloutConfig, model: str) -> int:
    """Room in shared memory for the preprocessed pictures of all prompts that a worker samples at once.

    vLLM keeps them in a ring, and ends if one is overwritten that a sibling has yet to read. A prompt cannot have more
    patches than `max_model_len` has room for, nor pictures more than the processor lets through.
    """
    from transformers import AutoProcessor

    pictures = AutoProcessor.from_pretrained(model).image_processor
    allowed = config.max_pictures * pictures.size["longest_edge"] // pictures.patch_size**2
    patches = min(allowed, config.max_model_len * pictures.merge_size**2)
    values_a_patch = 3 * pictures.temporal_patch_size * pictures.patch_size**2
    # One more than are sampled at once, for what is lost where the ring begins anew.
    return (config.concurrent_prompts + 1) * patches * values_a_patch * np.dtype(np.float32).itemsize


def engine_arguments(config: RolloutConfig, model: str) -> dict[str, Any]:
    """What vLLM is started with."""
    on_device: dict[str, Any] = {
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "max_num_batched_tokens": max(config.max_model_len, GPU_BATCHED_TOKENS),
        # In a placement group, as here, vLLM would make Ray actors of the other devices' workers.
        "distributed_executor_backend": "mp" if config.tensor_parallel_size > 1 else "uni",
    }
    if on_cpu():
        # A prompt cut in pieces would end the engine: the token sampled after a piece is taken back, and with it the
        # state of the request's random generator, which a CPU's cannot do.
        on_device = {
            "block_size": CPU_BLOCK_TOKENS,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(config.max_model_len, CPU_BATCHED_TOKENS),
        }
    return {
        "model": model,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.enforce_eager or on_cpu(),
        "tensor_parallel_size": config.tensor_parallel_size,
        "kv_cache_memory_bytes": None if config.kv_cache_mib is None else config.kv_cache_mib << 20,
        "limit_mm_per_prompt": {"image": config.max_pictures, "video": 0},
        "logprobs_mode": "processed_logprobs",  # the default ignores the temperature
        # With the default type a paused request whose pictures were in the prefix cache cannot be started again.
        "mm_processor_cache_type": "shm",
        "mm_processor_cache_gb": picture_cache_bytes(config, model) / (1 << 30),
        "worker_extension_cls": "rollout.weights.WorkerExtension",
        "weight_transfer_config": {"backend": config.weight_transport},
        "disable_log_stats": True,
        **on_device,
    }
