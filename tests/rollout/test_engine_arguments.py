"""What vLLM is started with, on either device."""

from pathlib import Path

import pytest

from rollout import engine
from rollout.config import RolloutConfig
from rollout.engine import engine_arguments, picture_cache_bytes


def test_on_a_gpu_a_step_takes_many_prompts_and_the_devices_of_a_worker_are_its_own_processes(
    policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "on_cpu", lambda: False)
    config = RolloutConfig(tensor_parallel_size=4, gpu_memory_utilization=0.7)
    given = engine_arguments(config, str(policy_folder))
    assert given["distributed_executor_backend"] == "mp"  # in a placement group vLLM would take Ray's actors
    assert (given["max_num_batched_tokens"], given["gpu_memory_utilization"]) == (8192, 0.7)
    assert "enable_chunked_prefill" not in given
    assert engine_arguments(RolloutConfig(), str(policy_folder))["distributed_executor_backend"] == "uni"


def test_on_a_gpu_the_longest_prompt_fits_in_a_step(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "on_cpu", lambda: False)
    given = engine_arguments(RolloutConfig(max_model_len=20_000), str(policy_folder))
    assert given["max_num_batched_tokens"] == 20_000


@pytest.mark.parametrize(
    ("max_model_len", "patches"),
    [
        (4096, 1066),  # two pictures of 76,800 pixels, the most its processor lets through, 144 a patch
        (100, 400),  # four patches a token
    ],
)
def test_the_pictures_of_all_prompts_that_are_sampled_at_once_have_room(
    policy_folder: Path, max_model_len: int, patches: int
) -> None:
    config = RolloutConfig(concurrent_prompts=5, max_model_len=max_model_len, max_answer_tokens=8)
    a_patch = 3 * 2 * 12 * 12 * 4  # colours, frames, 12x12 pixels, float32
    assert picture_cache_bytes(config, str(policy_folder)) == (5 + 1) * patches * a_patch
    given = engine_arguments(config.model_copy(update={"kv_cache_mib": 1}), str(policy_folder))
    assert given["mm_processor_cache_gb"] * 2**30 == (5 + 1) * patches * a_patch
