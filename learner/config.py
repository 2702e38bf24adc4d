"""The learner's section of a run file. Importing it loads nothing heavy."""

import math
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from learner.loss_config import LossConfig
from records.task import Imitation

CHECKPOINTS = "checkpoints"
"""In the run directory."""


class LearnerConfig(BaseModel):
    """The learner on DeepSpeed: the optimiser, the loss, and how a step is laid out on the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ranks: int = Field(default=1, ge=1, description="Learner processes; each takes a share of every step's groups.")
    imitation: Imitation = Field(
        default="answer",
        description="What `sft` imitates: the right answers alone (STAR-SFT), or behind a reasoning. "
        "Unused by `train`.",
    )
    loss: LossConfig = Field(default=LossConfig(), description="What is minimised; a table of its own.")
    learning_rate: float = Field(default=1e-6, gt=0, description="AdamW's, after the warm-up; larger learns faster.")
    warmup_steps: int = Field(
        default=0, ge=0, description="Steps over which the learning rate rises in a line; larger starts more gently."
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="The learning rate after the warm-up: as it is, or down to 0 at the run's end."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="AdamW's, on all parameters; larger pulls them harder towards 0."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's memory of gradients; larger is longer.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's memory of their squares; larger is longer.")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Gradients of a larger global norm are scaled down to it; larger clips less."
    )
    freeze: Literal["nothing", "vision", "language"] = Field(
        default="nothing", description="The part of the policy that is not trained."
    )
    lora_rank: int = Field(
        default=0,
        ge=0,
        description="Train low-rank adapters of this rank in place of the linear layers that are not frozen; larger "
        "can learn more; 0 trains the layers themselves. Published and saved merged.",
    )
    lora_alpha: int = Field(
        default=32, gt=0, description="Adapters count alpha / rank; larger learns faster. Without lora_rank unused."
    )
    zero_stage: int = Field(
        default=2,
        ge=0,
        le=3,
        description="DeepSpeed ZeRO: what the ranks share out; 0 nothing, 1 optimiser states, 2 gradients as well, 3 "
        "weights as well. Larger needs less memory a rank and talks more.",
    )
    offload_optimizer: bool = Field(
        default=False, description="Keep optimiser states in the host's memory and update there: smaller and slower."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Of weights and activations; bfloat16 keeps float32 master weights beside them."
    )
    row_tokens: int = Field(
        default=4096,
        ge=1,
        description="Tokens of one forward pass; larger is faster and needs more memory. A group that is longer is "
        "split; a single sample with its prompt may be longer than this.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    timeout_s: float = Field(
        default=600.0, gt=0, description="Deadline of one step in seconds; larger notices a hung rank later."
    )

    @property
    def trains_all(self) -> bool:
        """Whether a step may change any parameter."""
        return self.freeze == "nothing" and self.lora_rank == 0

    @model_validator(mode="after")
    def _check_stage_0(self) -> Self:
        if self.zero_stage == 0 and self.dtype == "bfloat16":
            raise ValueError("zero_stage 0 keeps no float32 master weights; take 1, 2 or 3 with dtype bfloat16")
        if self.zero_stage == 0 and self.offload_optimizer:
            raise ValueError("zero_stage 0 cannot offload; take 1, 2 or 3 with offload_optimizer")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerJob:
    """What the ranks must know of the run beside their own section; the same on all of them.

    *model* and *reference* are Hugging Face folders: the policy to begin with, and the one that the KL is taken from.
    Samples are drawn at *temperature* and are at most *max_answer_tokens* long; the run makes *steps* steps. Refused
    steps and checkpoints, the newest *keep_checkpoints* of them, go to *folder*, which all ranks share; writing one may
    take *checkpoint_timeout_s* seconds. On *device* "gpu" each rank has a GPU or ends at once; on "cpu" it leaves any
    alone. With *keeps_logprobs* a step's report has what the policy gave the sampled tokens.
    """

    model: str
    reference: str
    folder: str
    temperature: float
    max_answer_tokens: int
    steps: int
    seed: int = 0
    keep_checkpoints: int = 2
    device: Literal["cpu", "gpu"] = "cpu"
    checkpoint_timeout_s: float = 3600.0
    keeps_logprobs: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; learning needs samples drawn at one above 0")


def learning_rate(config: LearnerConfig, step: int, steps: int) -> float:
    """That of *step*, counted from 1, of *steps*: a line up, then constant or half a cosine down.

    >>> config = LearnerConfig(learning_rate=1.0, warmup_steps=2, schedule="cosine")
    >>> [round(learning_rate(config, step, steps=6), 3) for step in range(1, 7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    share = (step - config.warmup_steps - 1) / max(1, steps - config.warmup_steps)
    return config.learning_rate * (1 + math.cos(math.pi * share)) / 2
