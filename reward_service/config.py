"""Settings of the reward service."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RewardConfig(BaseModel):
    """How replies are scored, and by how many workers. `for_task` of a run file says more of *rule* and *options*."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(default=1, ge=1, description="Scoring actors; more score more samples at the same time.")
    concurrent_samples: int = Field(
        default=16,
        ge=1,
        description="Samples a worker scores at once, on threads; larger hides rules that wait (for a judge, say), but "
        "not rules that compute.",
    )
    timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds until a sample must be scored; longer ends the run, and is never a score.",
    )
    rule_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds a rule may work on one sample; longer, and the sample is named and the worker replaced.",
    )
    memory_mib: int = Field(
        default=2048,
        ge=1,
        description="MiB a worker may hold in memory, of which the task and its rules take about 200; more, and the "
        "samples at work are named and the worker replaced.",
    )
    rule: str = Field(description="One of the task's rules, its first by default, or your own package.module:function.")
    options: BaseModel = Field(description="Of the task's rules; a table of its own.")

    @model_validator(mode="after")
    def _check_limits_together(self) -> Self:
        if self.rule_timeout_s >= self.timeout_s:
            raise ValueError(
                f"rule_timeout_s {self.rule_timeout_s:g} is not below timeout_s {self.timeout_s:g}, so that nobody "
                "would wait to hear which rule takes too long; raise timeout_s, or lower rule_timeout_s"
            )
        return self
