"""Reward rules, pure: reply text and truth to named terms, whose sum is the reward.

A task brings rules by name; a user's rule has the signature `Rule` and is named in the config by its import path.
"""

import math
import re
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from functools import lru_cache
from numbers import Real
from typing import Any

from records.samples import Score
from records.task import Task, load_named

Rule = Callable[[str, Any], Mapping[str, float]]
"""`rule(reply, gold)` returns the terms of the reward by name, all finite; their sum is the reward.

A name is of letters, digits and underscores, so that it can be a column and a gauge. True and False count 1 and 0.

    def brevity(reply: str, gold: Any) -> dict[str, float]:
        return {"short": 1.0 if len(reply) < 200 else 0.0}

*gold* is the truth of the prompt as its task has it. A rule must not depend on anything but its arguments, and is
called on several threads at once. What it raises fails the sample by name; it is never a reward.
"""

_NUMBERS = (float, int, Real)  # the last alone would do, and take longer


def load_rule(task: Task, rule: str, options: Any) -> Rule:
    """The *rule* of *task* by this name, with its *options*, or what an import path names.

    Raises ValueError when that leads nowhere.
    """
    if rule in task.rules:
        built_in = task.rules[rule]
        return lambda reply, gold: built_in(reply, gold, options)
    found = load_named(rule, "the rule")
    if not callable(found):
        raise ValueError(f"the rule {rule!r} is {found!r}; it must be a function rule(reply, gold)")
    return found


def score(task: Task, rule: Rule, reply: str, gold: Any) -> Score:
    """Apply *rule*, and have *task* judge. Raises what `compute_parts` and the task raise."""
    parts = compute_parts(rule, reply, gold)
    return Score(total=sum(parts.values()), parts=parts, judgement=task.judge(reply, gold, parts))


def compute_parts(rule: Rule, reply: str, gold: Any) -> dict[str, float]:
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
