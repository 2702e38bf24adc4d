"""Settings of the reward service."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

BUILT_IN_RULES = ("star_r1", "naive")


def _check_rule(rule: str) -> str:
    if rule not in BUILT_IN_RULES and not re.fullmatch(r"\w+(\.\w+)*:\w+", rule):
        raise ValueError(f"{rule!r} is no rule; give one of {', '.join(BUILT_IN_RULES)}, or package.module:function")
    return rule


class RewardConfig(BaseModel):
    """How replies are scored, and by how many workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(default=1, ge=1, description="Scoring actors; more score more groups at the same time.")
    timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds a worker may take for one group; longer ends the run, and is never a score.",
    )
    rule: Annotated[str, AfterValidator(_check_rule)] = Field(
        default="star_r1",
        description="star_r1, naive (sparse: the whole answer or nothing), or package.module:function of your own.",
    )
    object_tier: bool = Field(default=True, description="star_r1: pay 0.5 when only the object is right.")
    attribute_tier: bool = Field(default=True, description="star_r1: pay 1.5 when object and attribute are right.")
    wrong_penalty: bool = Field(default=True, description="star_r1: take 1.0 for each wrong prediction.")
    inaction_penalty: bool = Field(
        default=True, description="star_r1: take 1.0 for each prediction fewer than there are true changes."
    )
    partial_is_wrong: bool = Field(
        default=True, description="star_r1: a match of the object, or object and attribute, is wrong too (takes 1.0)."
    )
    naive_reward: float = Field(
        default=5.0, gt=0, description="naive: paid when the whole answer is right; the paper does not give it."
    )
