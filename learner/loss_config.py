"""The loss's section of the learner's configuration. Importing it loads nothing heavy.

An *algorithm* is a name for a choice of the other fields, nothing more: the loss never asks for it. Any field can be
given beside it and then wins.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath (arXiv 2402.03300): the defaults of the fields. Its KL weight, 0.04, has to be asked for.
    "grpo": {},
    # arXiv 2503.20783: neither an answer's length nor the spread of a group's rewards changes what a token counts.
    "dr_grpo": {"weighting": "constant", "advantage_scaling": "none"},
    # arXiv 2503.14476. Its overlong buffer depends on the length that is allowed, and has to be asked for.
    "dapo": {"weighting": "token", "clip_high": 0.28, "equal_groups": "leave_out"},
    # arXiv 2507.18071: sequence ratios lie far closer to 1 than those of tokens. Its section 5.1 clips at 3e-4 and
    # 4e-4, for the minibatches of one batch against the policy at that batch's start. Here a ratio is to the policy
    # that sampled, a version older and in another engine: with a sampler_kl of 1e-4 to 1e-3, as runs have it, the mean
    # log-ratio of 40 tokens has a standard deviation of 0.002 to 0.007, and by bfloat16 alone of 0.0009. Outside the
    # paper's widths lie 87 % to 96 % of such answers, or 69 %; outside ours, a hundred times as wide, 0.1 % at most.
    "gspo": {"objective": "sequence_clip", "clip_low": 0.03, "clip_high": 0.04},
    # MiniMax-M1 (arXiv 2506.13585): no lower bound on the ratio. The paper does not give its upper bound; 5 is ours.
    "cispo": {"objective": "cispo", "weighting": "token", "clip_low": 1.0, "clip_high": 4.0},
    # arXiv 2402.14740: REINFORCE on whole answers, the KL (if any) taken from the reward. The paper learns on policy;
    # proximal and correction weigh samples of an older version, and count 1 where there is none.
    "rloo": {
        "objective": "reinforce",
        "weighting": "sum",
        "baseline": "leave_one_out",
        "advantage_scaling": "none",
        "kl_in": "reward",
        "kl_estimator": "k1",
        "proximal": "learner",
        "correction": "truncate",
    },
}
"""What each algorithm sets differently from GRPO: as its paper does, but where a comment says otherwise."""


class LossConfig(BaseModel):
    """What the learner minimises. P groups of G samples in a step, La tokens in an answer; *ratio* is the learner's
    probability of a token over the sampler's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    algorithm: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"] = Field(
        default="grpo",
        description="Sets the fields that are not given, nearly all as its paper does (see PRESETS); those that are "
        "given win.",
    )
    objective: Literal["clip", "sequence_clip", "cispo", "reinforce"] = Field(
        default="clip",
        description="clip: a token's ratio, clipped where it has moved far enough. sequence_clip: the same with the "
        "geometric mean of the answer's ratios. cispo: log-probs weighted by the ratio, which is bounded but never "
        "stops a token's gradient. reinforce: log-probs, no ratio.",
    )
    weighting: Literal["sample", "token", "constant", "sum"] = Field(
        default="sample",
        description="What a token counts, over the whole step. sample 1/(P G La): samples count alike. token 1/(all "
        "answer tokens of the step): tokens count alike, so long answers count more. constant 1/(P G "
        "max_answer_tokens): the same, whatever the lengths in the step. sum 1/(P G): an answer's log-prob is the sum "
        "of its tokens'; gradients are about La times those of sample, and max_grad_norm has to be as much larger.",
    )
    baseline: Literal["group_mean", "leave_one_out"] = Field(
        default="group_mean",
        description="What a reward is compared with: the mean of its group, or of the others in it. The second is "
        "unbiased and G/(G - 1) times as large.",
    )
    advantage_scaling: Literal["group_std", "batch_std", "none"] = Field(
        default="group_std",
        description="Divide advantages by the standard deviation of rewards about their group's mean: over the group, "
        "over the whole step, or not at all.",
    )
    clip_low: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Ratios are clipped at 1 - clip_low; larger trusts older samples more; 1 sets no lower bound.",
    )
    clip_high: float = Field(
        default=0.2, gt=0, description="Ratios are clipped at 1 + clip_high; larger lets rare tokens rise faster."
    )
    ratio_bound: float = Field(
        default=3.0,
        gt=1,
        description="The clip and sequence_clip objectives stop the gradient of a token with a negative advantage "
        "beyond this ratio, which clip_high does not bound (dual clip, arXiv 1912.09729); larger lets one token "
        "weigh more in a step.",
    )
    equal_groups: Literal["count", "leave_out"] = Field(
        default="count",
        description="Groups whose rewards by the rule are all equal: count them in P, in the number of tokens and in "
        "batch_std, or treat the step as if it did not hold them, whatever punishment or KL their rewards hold. "
        "leave_out makes the gradient larger, the more so the fewer groups have anything to teach.",
    )
    overlong_buffer_tokens: int = Field(
        default=0,
        ge=0,
        description="The reward falls in a line by up to 1 over the last so many tokens before max_answer_tokens "
        "(DAPO's soft overlong punishment); larger starts earlier and falls more gently; 0 turns it off.",
    )
    kl_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL divergence from the starting policy; larger stays nearer to it; 0 turns it off "
        "and keeps no second policy in memory.",
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        default="k3",
        description="Of the KL divergence, from one token, d being its log-ratio to the starting policy. k1: d, "
        "unbiased and noisy. k2: d^2/2, biased, least noisy. k3: exp(-d) - 1 + d, unbiased, never negative.",
    )
    kl_in: Literal["loss", "reward"] = Field(
        default="loss",
        description="Add the KL divergence to the loss, token by token, or take that of an answer (summed over its "
        "tokens, sampler's policy) from its reward.",
    )
    proximal: Literal["sampler", "learner"] = Field(
        default="sampler",
        description="The policy that ratios are taken against: the one that sampled, or the learner's own at the start "
        "of the step (decoupled objective); then the ratio is 1 and nothing is clipped, and each token counts by the "
        "start's probability over the sampler's instead.",
    )
    correction: Literal["none", "truncate", "mask"] = Field(
        default="none",
        description="What becomes of that count: leave it, cut it down to correction_high, or drop tokens for which it "
        "lies outside [correction_low, correction_high]. Needs proximal = learner.",
    )
    correction_low: float = Field(
        default=0.5, ge=0, le=1, description="Lower bound of mask; larger drops more tokens; 0 sets none."
    )
    correction_high: float = Field(
        default=2.0,
        ge=1,
        description="Upper bound of truncate and mask; larger corrects more and is noisier. IcePop masks above 5.",
    )
    sequence_mask_low: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Samples whose ratio (geometric mean over their tokens) is lower are dropped; larger drops more.",
    )
    sequence_mask_high: float | None = Field(
        default=None,
        ge=1,
        description="Samples whose ratio (geometric mean over their tokens) is higher are dropped; larger drops fewer.",
    )

    @property
    def needs_reference(self) -> bool:
        """Whether the starting policy's log-probs are used."""
        return self.kl_weight > 0

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        algorithm = given.get("algorithm", "grpo")
        return (PRESETS.get(algorithm, {}) if isinstance(algorithm, str) else {}) | given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.correction != "none" and self.proximal != "learner":
            raise ValueError(
                f"correction {self.correction} acts on the weight that proximal = learner puts on a token; set "
                "proximal to learner, or correction to none"
            )
        if self.kl_weight > 0 and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_estimator k1 in the loss pulls nowhere: its gradient is zero on average; take k2 or k3, or set "
                "kl_in to reward"
            )
        return self

    @model_validator(mode="after")
    def _check_bounds_act(self) -> Self:
        idle: tuple[str, ...] = ()
        if self.objective == "reinforce":
            idle, why = ("clip_low", "clip_high", "ratio_bound"), "objective = reinforce, which has no ratio"
        elif self.proximal == "learner":
            idle, why = ("clip_low", "clip_high", "ratio_bound"), "proximal = learner, where every ratio is 1"
        elif self.objective == "cispo":
            idle, why = ("ratio_bound",), "objective = cispo, which never stops a gradient"
        for name in idle:
            value, usual = getattr(self, name), _setting(self.algorithm, name)
            if value != usual:
                raise ValueError(f"{name} {value} has no effect with {why}; leave it out, or set it to {usual}")
        return self


def with_algorithm(
    section: Mapping[str, Any], algorithm: Any, given: Collection[str]
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """The *section* of a run file made ready for another *algorithm*, which is set over it beside the keys *given*.

    What only says what the old algorithm sets anyway is left out, so that the new one sets it: in the resolved section
    of a run, which holds every key, that is all that nobody chose. Choices stay. Also returns those that contradict the
    new algorithm, as (value in the section, value the new one sets) by key; what was meant by them only the user knows.
    """
    old = section.get("algorithm", "grpo")
    if old == algorithm or not _is_algorithm(old) or not _is_algorithm(algorithm):
        return dict(section), {}
    ready, contradictions = {}, {}
    for key, value in section.items():
        if key not in LossConfig.model_fields or key == "algorithm" or key in given:
            ready[key] = value
        elif value != _setting(old, key):
            ready[key] = value
            if key in PRESETS[old] | PRESETS[algorithm] and value != _setting(algorithm, key):
                contradictions[key] = (value, _setting(algorithm, key))
    return ready, contradictions


def _is_algorithm(name: Any) -> bool:
    return isinstance(name, str) and name in PRESETS


def _setting(algorithm: str, name: str) -> Any:
    """What the field *name* is, if only the algorithm is given."""
    return PRESETS[algorithm].get(name, LossConfig.model_fields[name].default)
