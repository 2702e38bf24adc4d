"""Reward rules, pure: reply text and truth to named terms, whose sum is the reward.

STAR-R1's rule and the paper's sparse baseline are here; a user's rule has the same signature (`Rule`) and is named in
the config by its import path.
"""

import importlib
import math
import os
import re
import sys
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from numbers import Real
from typing import Any

from reward_service.config import ABLATIONS, RewardConfig
from tvr.language.answer import Answer, parse
from tvr.language.scene import Transformation
from tvr.records import Gold, Score

Rule = Callable[[str, Gold], Mapping[str, float]]
"""`rule(reply, gold)` returns the terms of the reward by name, all finite; their sum is the reward.

A name is of letters, digits and underscores, so that it can be a column and a gauge. True and False count 1 and 0.

    def brevity(reply: str, gold: Gold) -> dict[str, float]:
        return {"short": 1.0 if len(reply) < 200 else 0.0}

It must not depend on anything but its arguments, and is called on several threads at once. What it raises fails the
sample by name; it is never a reward.
"""

FORMAT_REWARD = 1.0
VALUE_REWARD = 5.0
ATTRIBUTE_REWARD = 1.5
OBJECT_REWARD = 0.5
WRONG_PENALTY = -1.0
INACTION_PENALTY = -1.0

_NUMBERS = (float, int, Real)  # the last alone would do, and take longer

parse_once = lru_cache(maxsize=1)(parse)
"""`parse`, which remembers the last reply: a rule and whoever judges by it read the same one, one after the other."""


def star(reply: str, gold: Gold, config: RewardConfig) -> dict[str, float]:
    """STAR-R1's reward: *format*, *value*, *attribute*, *object*, *miss* (wrong predictions) and *inaction*.

    The truth is what can be seen, `gold.changes`. Predictions and true changes are matched one to one, best tier first,
    in the order written; a repeated triplet matches nothing. Without the attribute tier, one of object and attribute
    counts as one of the object alone.
    """
    answer = parse_once(reply)
    predicted = answer.triplets if isinstance(answer, Answer) else ()
    if not config.duplicate_is_wrong:
        predicted = tuple(dict.fromkeys(predicted))
    truth = gold.changes
    matches = match(predicted, truth, config)
    num_right = matches["value"] if config.partial_is_wrong else sum(matches.values())
    num_wrong = len(predicted) - num_right if config.wrong_penalty else 0
    num_missing = max(0, len(truth) - len(predicted)) if config.inaction_penalty else 0
    return {
        "format": FORMAT_REWARD if isinstance(answer, Answer) else 0.0,
        "value": VALUE_REWARD * matches["value"],
        "attribute": ATTRIBUTE_REWARD * matches["attribute"],
        "object": OBJECT_REWARD * matches["object"],
        "miss": WRONG_PENALTY * num_wrong,
        "inaction": INACTION_PENALTY * num_missing,
    }


def naive(reply: str, gold: Gold, config: RewardConfig) -> dict[str, float]:
    """The sparse baseline: *format*, and *exact* only if the triplets are the true ones, each once, in any order."""
    answer = parse_once(reply)
    exact = isinstance(answer, Answer) and Counter(answer.triplets) == Counter(gold.changes)
    return {
        "format": FORMAT_REWARD if isinstance(answer, Answer) else 0.0,
        "exact": config.naive_reward if exact else 0.0,
    }


def match(
    predicted: tuple[Transformation, ...], truth: tuple[Transformation, ...], config: RewardConfig
) -> dict[str, int]:
    """How many predictions matched in each tier: `value`, `attribute`, `object`, in this order, one to one."""
    tiers = {"value": 3}  # how many fields of index, attribute, value must agree
    if config.attribute_tier:
        tiers["attribute"] = 2
    if config.object_tier:
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


def load_rule(config: RewardConfig) -> Rule:
    """The rule that *config* names, with its switches. Raises ValueError when an import path leads nowhere.

    The current directory counts, after all other places, wherever the program itself was started from.
    """
    if config.rule == "star":
        return partial(star, config=config)
    if config.rule in ABLATIONS:
        return partial(star, config=config.model_copy(update={ABLATIONS[config.rule]: False}))
    if config.rule == "naive":
        return partial(naive, config=config)
    module_name, _, function_name = config.rule.partition(":")
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        rule = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:  # importing runs the module, which may raise anything
        raise ValueError(
            f"the rule {config.rule!r} cannot be imported ({type(error).__name__}: {error}); check the name, and that "
            "the module is in the current directory, installed, or its folder on PYTHONPATH"
        ) from error
    if not callable(rule):
        raise ValueError(f"the rule {config.rule!r} is {rule!r}; it must be a function rule(reply, gold)")
    return rule


def score(rule: Rule, reply: str, gold: Gold) -> Score:
    """Apply *rule*. Raises what `compute_parts` raises."""
    parts = compute_parts(rule, reply, gold)
    return Score(total=sum(parts.values()), parts=parts, answer=parse_once(reply))


def compute_parts(rule: Rule, reply: str, gold: Gold) -> dict[str, float]:
    """The terms of *rule*, whose sum is the reward.

    Raises what the rule raises, TypeError if it returns no named terms, ValueError if one is not finite. What would
    end the process or the caller's task becomes a RuntimeError.
    """
    try:
        terms = rule(reply, gold)
    except (SystemExit, GeneratorExit, CancelledError) as error:
        raise RuntimeError(f"the rule ended with {error!r}; it must return its terms") from error
    if not isinstance(terms, Mapping):
        raise TypeError(f"the rule returned {terms!r}; it must return a dict of named terms")
    _check_names(tuple(terms))
    parts = {}
    for name, value in terms.items():
        if not isinstance(value, _NUMBERS):
            raise TypeError(f"the rule returned {value!r} for the term {name!r}; it must be a number")
        parts[name] = float(value) + 0.0  # never -0.0, which people ask about
    if not all(map(math.isfinite, parts.values())):
        raise ValueError(f"the rule returned {parts}; every term must be a finite number")
    return parts


@lru_cache(maxsize=64)  # the same few come with every reply
def _check_names(names: tuple[Any, ...]) -> None:
    for name in names:
        if not isinstance(name, str) or not re.fullmatch("[A-Za-z0-9_]+", name):
            raise ValueError(f"the rule named a term {name!r}; a name must be of letters, digits and underscores")
