"""The learner's section of a run file. Importing it loads nothing heavy."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LearnerConfig(BaseModel):
    """GRPO on DeepSpeed: the optimiser, the loss, and how a step is laid out on the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranks: int = Field(default=1, ge=1, description="Learner processes; each takes a share of every step's groups.")
    learning_rate: float = Field(default=1e-6, gt=0, description="AdamW's, after the warm-up; larger learns faster.")
    warmup_steps: int = Field(
        default=0, ge=0, description="Steps over which the learning rate rises in a line; it is constant from then on."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="AdamW's, on all parameters; larger pulls them harder towards 0."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's memory of gradients; larger is longer.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's memory of their squares; larger is longer.")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Gradients of a larger global norm are scaled down to it; larger clips less."
    )
    clip_low: float = Field(
        default=0.2, gt=0, lt=1, description="Ratios are clipped at 1 - clip_low; larger trusts older samples more."
    )
    clip_high: float = Field(
        default=0.2, gt=0, description="Ratios are clipped at 1 + clip_high; larger lets rare tokens rise faster."
    )
    kl_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL divergence from the starting policy; larger stays nearer to it; 0 turns it off "
        "and keeps no second policy in memory.",
    )
    advantage_scaling: Literal["group_std", "none"] = Field(
        default="group_std", description="Divide a group's centred rewards by their standard deviation, or leave them."
    )
    zero_stage: int = Field(
        default=2,
        ge=0,
        le=3,
        description="DeepSpeed ZeRO: what the ranks share out; 0 nothing, 1 optimiser states, 2 gradients as well, 3 "
        "weights as well. Larger needs less memory a rank and talks more.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Of weights and activations; bfloat16 keeps float32 master weights beside them."
    )
    row_tokens: int = Field(
        default=4096,
        ge=1,
        description="Tokens of one forward pass, padding included; larger is faster and needs more memory. A group "
        "longer than this goes through alone.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    timeout_s: float = Field(
        default=600.0, gt=0, description="Deadline of one step in seconds; larger notices a hung rank later."
    )

    @model_validator(mode="after")
    def _check_master_weights(self) -> Self:
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError("zero_stage 0 keeps no float32 master weights; take 1, 2 or 3 with dtype bfloat16")
        return self
