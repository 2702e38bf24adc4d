"""The `rollout` section of a run file. Importing it loads no engine."""

from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Transport = Literal["object_store", "nccl"]
OBJECT_STORE, NCCL = get_args(Transport)


class Autoscale(BaseModel):
    """How few and how many rollout workers a run may have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: int = Field(1, ge=1, description="Never fewer.")
    max: int = Field(ge=1, description="Never more.")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} exceeds max {self.max}; swap them")
        return self


class RolloutConfig(BaseModel):
    """How answers are sampled, and what one rollout worker may use of its machine.

    There is no top_p and no top_k: they renormalise the distribution over the tokens that they keep, so that the
    engine's log-probs would no longer be the policy's, unless the learner truncated in the same way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    workers: int = Field(1, ge=1, description="Rollout workers to start, each with an engine of its own.")
    autoscale: Autoscale | None = Field(
        None,
        description="{ min = 1, max = 8 }: more workers while the learner waits for groups, fewer while groups wait "
        "for it. Without: as many as workers says, or star-r1 scale.",
    )
    samples_per_prompt: int = Field(
        8, ge=2, description="G, the answers to one prompt. Larger: better baselines, fewer prompts for the same time."
    )
    concurrent_prompts: int = Field(
        16,
        ge=1,
        description="Groups that a worker samples at once. Larger fills the engine and makes each group slower.",
    )
    inflight: Literal["keep", "drain"] = Field(
        "keep",
        description="Answers that are being sampled when a version comes: keep lets them go on under the new weights, "
        "each token stamped with its version; drain ends them first, so that no answer has two, and the engine idles.",
    )
    weight_transport: Transport = Field(
        OBJECT_STORE,
        description="How new weights come: object_store, on any machine, checked byte by byte and loaded while the "
        "learner goes on; nccl, from GPU to GPU, while the learner waits.",
    )
    max_answer_tokens: int = Field(
        512, ge=1, description="An answer is cut off after so many tokens. Larger: longer reasoning, slower steps."
    )
    temperature: float = Field(
        1.0, gt=0, description="Logits are divided by it; log-probs are those after the division. Larger explores more."
    )
    timeout_s: float = Field(
        600.0, gt=0, description="Seconds a call to a worker may take; longer ends the run, so a hung one is noticed."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16",
        description="Type of the weights and of the arithmetic; give learner.dtype's, for where only one of the two "
        "rounds, every token's log-prob differs (sampler_kl). float32 on both sides agrees to 1e-5.",
    )
    max_model_len: int = Field(
        4096,
        ge=2,
        description="Most tokens of prompt (pictures expanded) and answer together. Larger needs more cache.",
    )
    max_pictures: int = Field(2, ge=0, description="Most pictures of a prompt. Larger needs more shared memory.")
    max_num_seqs: int = Field(
        128, ge=1, description="Answers decoded at once; the others wait. Larger: more tokens per second, more cache."
    )
    kv_cache_mib: int | None = Field(
        None,
        ge=1,
        description="Size of the KV cache. Needed on a CPU; a GPU without it follows gpu_memory_utilization.",
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of a GPU's memory that the engine may take. Ignored on a CPU."
    )
    tensor_parallel_size: int = Field(1, ge=1, description="Devices that share one engine. Larger fits larger models.")
    enforce_eager: bool = Field(
        False, description="Run without compilation and CUDA graphs: starts sooner, decodes slower. Always so on a CPU."
    )

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.max_answer_tokens >= self.max_model_len:
            raise ValueError(
                f"max_answer_tokens is {self.max_answer_tokens} and leaves no room for a prompt in max_model_len "
                f"{self.max_model_len}; lower the first or raise the second"
            )
        return self
