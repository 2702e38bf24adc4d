"""STAR-R1's rule, the paper's sparse baseline and its ablations: reply and truth to named terms."""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field

from tasks.tvr.language.answer import Answer, parse
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.scene import Transformation

FORMAT_REWARD = 1.0
VALUE_REWARD = 5.0
ATTRIBUTE_REWARD = 1.5
OBJECT_REWARD = 0.5
WRONG_PENALTY = -1.0
INACTION_PENALTY = -1.0


class StarOptions(BaseModel):
    """Switches of star, and what naive pays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


parse_once = lru_cache(maxsize=1)(parse)
"""`parse`, which remembers the last reply: a rule and whoever judges by it read the same one, one after the other."""


def star(reply: str, gold: Gold, options: StarOptions) -> dict[str, float]:
    """STAR-R1's reward: *format*, *value*, *attribute*, *object*, *miss* (wrong predictions) and *inaction*.

    The truth is what can be seen, `gold.changes`. Predictions and true changes are matched one to one, best tier first,
    in the order written; a repeated triplet matches nothing. Without the attribute tier, one of object and attribute
    counts as one of the object alone.
    """
    answer = parse_once(reply)
    predicted = answer.triplets if isinstance(answer, Answer) else ()
    if not options.duplicate_is_wrong:
        predicted = tuple(dict.fromkeys(predicted))
    truth = gold.changes
    matches = match(predicted, truth, options)
    num_right = matches["value"] if options.partial_is_wrong else sum(matches.values())
    num_wrong = len(predicted) - num_right if options.wrong_penalty else 0
    num_missing = max(0, len(truth) - len(predicted)) if options.inaction_penalty else 0
    return {
        "format": FORMAT_REWARD if isinstance(answer, Answer) else 0.0,
        "value": VALUE_REWARD * matches["value"],
        "attribute": ATTRIBUTE_REWARD * matches["attribute"],
        "object": OBJECT_REWARD * matches["object"],
        "miss": WRONG_PENALTY * num_wrong,
        "inaction": INACTION_PENALTY * num_missing,
    }


def naive(reply: str, gold: Gold, options: StarOptions) -> dict[str, float]:
    """The sparse baseline: *format*, and *exact* only if the triplets are the true ones, each once, in any order."""
    answer = parse_once(reply)
    exact = isinstance(answer, Answer) and Counter(answer.triplets) == Counter(gold.changes)
    return {
        "format": FORMAT_REWARD if isinstance(answer, Answer) else 0.0,
        "exact": options.naive_reward if exact else 0.0,
    }


def match(
    predicted: tuple[Transformation, ...], truth: tuple[Transformation, ...], options: StarOptions
) -> dict[str, int]:
    """How many predictions matched in each tier: `value`, `attribute`, `object`, in this order, one to one."""
    tiers = {"value": 3}  # how many fields of index, attribute, value must agree
    if options.attribute_tier:
        tiers["attribute"] = 2
    if options.object_tier:
        tiers["object"] = 1
    matches = {"value": 0, "attribute": 0, "object": 0}
    open_predictions, open_truth = list(dict.fromkeys(predicted)), list(truth)
    for tier, num_fields in tiers.items():
        if not (open_predictions and open_truth):
            break
        keys = [true[:num_fields] for true in open_truth]
        left_over = []
        for prediction in open_predictions:
            key = prediction[:num_fields]
            if key in keys:
                place = keys.index(key)
                del keys[place], open_truth[place]
                matches[tier] += 1
            else:
                left_over.append(prediction)
        open_predictions = left_over
    return matches


def without(switch: str) -> Callable[[str, Gold, StarOptions], dict[str, float]]:
    """The paper's ablation: star with *switch* off, whatever the options say of it."""

    def ablation(reply: str, gold: Gold, options: StarOptions) -> dict[str, float]:
        return star(reply, gold, options.model_copy(update={switch: False}))

    return ablation


ABLATED = ("object_tier", "attribute_tier", "wrong_penalty", "inaction_penalty")
RULES = {"star": star, "naive": naive, **{f"no_{switch}": without(switch) for switch in ABLATED}}
"""STAR-R1's (dense), the sparse baseline (the whole answer or nothing), and star with one switch off."""
