"""Settings of the reward service."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

ABLATIONS = {
    "no_object_tier": "object_tier",
    "no_attribute_tier": "attribute_tier",
    "no_wrong_penalty": "wrong_penalty",
    "no_inaction_penalty": "inaction_penalty",
}
"""The paper's ablations: STAR-R1's rule with one switch off."""
BUILT_IN_RULES = ("star", "naive", *ABLATIONS)


def _check_rule(rule: str) -> str:
    if rule not in BUILT_IN_RULES and not re.fullmatch(r"\w+(\.\w+)*:\w+", rule):
        raise ValueError(f"{rule!r} is no rule; give one of {', '.join(BUILT_IN_RULES)}, or package.module:function")
    return rule


class RewardConfig(BaseModel):
    """How replies are scored, and by how many workers."""

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
    rule: Annotated[str, AfterValidator(_check_rule)] = Field(
        default="star",
        description="star (STAR-R1's), naive (sparse: the whole answer or nothing), one of the paper's ablations "
        "(no_object_tier, no_attribute_tier, no_wrong_penalty, no_inaction_penalty: star with that switch off), or "
        "package.module:function of your own.",
    )
    object_tier: bool = Field(default=True, description="star: pay 0.5 when only the object is right.")
    attribute_tier: bool = Field(default=True, description="star: pay 1.5 when object and attribute are right.")
    wrong_penalty: bool = Field(default=True, description="star: take 1.0 for each wrong prediction.")
    inaction_penalty: bool = Field(
        default=True, description="star: take 1.0 for each prediction fewer than there are true changes."
    )
    partial_is_wrong: bool = Field(
        default=True, description="star: a match of the object, or object and attribute, is wrong too (takes 1.0)."
    )
    duplicate_is_wrong: bool = Field(
        default=True, description="star: a repeated triplet is a wrong prediction; if not, it does not count at all."
    )
    naive_reward: float = Field(
        default=5.0, gt=0, description="naive: paid when the whole answer is right; the paper does not give it."
    )
