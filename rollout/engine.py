"""vLLM's asynchronous engine behind three verbs: sample, load weights, shut down.

The only file that imports vllm to generate, and only when an engine is started. Always: what it returns was sampled
under the versions that its spans name, with log-probs of the policy at the run's temperature; anything that did not end
by the end token or by length is an error, never a sample. Written for vLLM 0.32; not yet run on a GPU.
"""

import asyncio
import hashlib
import io
import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from rollout.config import RolloutConfig
from tvr.records import PolicyVersion, Prompt, Sample, SampleGroup, Trace, VersionSpan

logger = logging.getLogger(__name__)

WEIGHT_BACKEND = "star_r1_file"
PICTURES_PER_PROMPT = 2
# Preprocessed pictures that wait for the worker process. The file is sparse and a ring: it fills up, then is reused.
PICTURE_CACHE_GIB = 1.0

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
    """vLLM's engine process ended. Its message is vLLM's."""


class RolloutEngine:
    """One engine. Build it inside the event loop that will use it; it blocks for seconds.

    *picture_cache_name* names its file in shared memory.
    """

    def __init__(self, config: RolloutConfig, model: str, picture_cache_name: str) -> None:
        from transformers import AutoProcessor

        self.config = config
        self._processor = AutoProcessor.from_pretrained(model)
        self._llm = _start_vllm(config, model, picture_cache_name)
        self._request_ids = itertools.count()

    async def label(self, version: PolicyVersion) -> None:
        """Prepare for weight updates and say which version the loaded weights are."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest())
        await self._llm.update_weight_version(str(version))

    async def sample(self, prompt: Prompt, num_samples: int, seed: int, greedy: bool) -> SampleGroup:
        """*num_samples* answers to *prompt*, all siblings of one request. Cancelling the caller aborts the request.

        Raises EngineDied, SamplingError, or ValueError for a prompt that cannot be asked.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        params = self._sampling_params(prompt, num_samples, seed, greedy)
        (request,) = await self._llm.renderer.render_cmpl_async([build_request(prompt, self._processor)])
        request_id = f"{prompt.id}#{seed}#{next(self._request_ids)}"
        try:
            (output,) = [final async for final in self._llm.generate(request, params, request_id)]
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        assert len(output.outputs) == num_samples, prompt.id
        prompt_token_ids = np.asarray(output.prompt_token_ids, dtype=np.int32)
        completions = sorted(output.outputs, key=lambda completion: completion.index)
        samples = (self._to_sample(prompt, seed, prompt_token_ids, completion) for completion in completions)
        return SampleGroup(prompt=prompt, samples=tuple(samples))

    async def load_weights(self, version: PolicyVersion, buckets: Sequence[bytes], file: Path) -> None:
        """Serve *version*, whose parameters are in *buckets*, each the bytes of a safetensors file.

        *file* is overwritten and removed. Answers in flight freeze, then go on under the new version as if it had
        sampled them from the start: their tokens stay, their keys and values are computed again. If this raises, the
        engine stays paused and its weights are a mixture: it must not be used again.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        # Not clear_cache=True: that also drops preprocessed pictures, which do not depend on weights and which requests
        # still in the queue hold by address.
        await self._llm.pause_generation(mode="keep", clear_cache=False)
        await self._llm.start_weight_update()
        try:
            for bucket in buckets:
                await asyncio.to_thread(_write_new, file, bucket)
                await self._llm.update_weights(WeightTransferUpdateRequest(update_info={"path": str(file)}))
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)
        if not await self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("the engine kept keys and values of the old weights")
        await self._llm.reset_encoder_cache()
        await self._llm.finish_weight_update(weight_version=str(version))
        await self._llm.resume_generation()

    def shutdown(self) -> None:
        # On a CPU the engine's process does not end by itself: it is killed after this time, by default five seconds.
        self._llm.shutdown(timeout=1.0 if on_cpu() else None)
        del self._llm  # vLLM's own clean-up fails if it happens only when the interpreter ends

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
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _to_sample(self, prompt: Prompt, seed: int, prompt_token_ids: np.ndarray, completion: Any) -> Sample:
        if completion.finish_reason not in ("stop", "length"):
            raise SamplingError(prompt.id, str(completion.finish_reason))
        token_ids = list(completion.token_ids)
        # One log-prob a token; otherwise the two lists could not be told to belong together.
        assert completion.logprobs.token_ids == token_ids, prompt.id
        trace = Trace(
            prompt_token_ids=prompt_token_ids,
            token_ids=np.asarray(token_ids, dtype=np.int32),
            logprobs=np.asarray(completion.logprobs.logprobs, dtype=np.float32),
            versions=tuple(
                VersionSpan(version=PolicyVersion(int(span.version)), start=span.start, end=span.end)
                for span in completion.weight_versions
            ),
            finish=completion.finish_reason,
        )
        text = self._processor.tokenizer.decode(token_ids, skip_special_tokens=True)
        return Sample(id=f"{prompt.id}#{seed}.{completion.index}", trace=trace, text=text)


def build_request(prompt: Prompt, processor: Any) -> dict[str, Any]:
    """The engine's request for *prompt*: token ids with one placeholder per picture (the engine expands them) and the
    decoded pictures. Raises ValueError, naming the prompt, if the two do not match."""
    text = processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
    # The template has written every special token.
    token_ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    placeholders = token_ids.count(processor.tokenizer.convert_tokens_to_ids(processor.image_token))
    if placeholders != PICTURES_PER_PROMPT:
        # The engine itself does not notice too many.
        raise ValueError(
            f"prompt {prompt.id} has {placeholders} image placeholders for {PICTURES_PER_PROMPT} pictures; "
            "check its messages and the model's chat template"
        )
    pictures = [
        _decode(prompt.id, "initial", prompt.pair.initial),
        _decode(prompt.id, "final", prompt.pair.final),
    ]
    return {"prompt_token_ids": token_ids, "multi_modal_data": {"image": pictures}}


def engine_seed(prompt_id: str, seed: int) -> int:
    """A seed of its own for each (prompt, *seed*). vLLM gives sibling *i* the seed plus *i*, so that neighbouring seeds
    used as they are would share samples."""
    digest = hashlib.blake2b(f"{prompt_id}#{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def _write_new(file: Path, content: bytes) -> None:
    """A new file under the old name: tensors of the one before may still be mapped."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def _decode(prompt_id: str, which: str, encoded: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            return picture.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"prompt {prompt_id}: its {which} picture is not an image that can be decoded") from error


def on_cpu() -> bool:
    """Whether vLLM runs on a CPU here."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _start_vllm(config: RolloutConfig, model: str, picture_cache_name: str) -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
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
    return AsyncLLM.from_engine_args(args)


def engine_arguments(config: RolloutConfig, model: str) -> dict[str, Any]:
    """What vLLM is started with."""
    on_device: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization}
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
        "limit_mm_per_prompt": {"image": PICTURES_PER_PROMPT, "video": 0},
        "logprobs_mode": "processed_logprobs",  # the default ignores the temperature
        # With the default type a paused request whose pictures were in the prefix cache cannot be started again.
        "mm_processor_cache_type": "shm",
        "mm_processor_cache_gb": PICTURE_CACHE_GIB,
        "worker_extension_cls": "rollout.weights.WorkerExtension",
        "weight_transfer_config": {"backend": WEIGHT_BACKEND},
        "disable_log_stats": True,
        **on_device,
    }
