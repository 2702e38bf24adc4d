"""Settings of the reward service."""

from pydantic import BaseModel, ConfigDict, Field


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
    rule: str = Field(description="One of the task's rules, its first by default, or your own package.module:function.")
    options: BaseModel = Field(description="Of the task's rules; a table of its own.")
