"""Replies of a base that can do better than it mostly does, as a general model's are.

A policy that always answers as well as it can has nothing to gain from reinforcement. So the last phase of pretraining
mixes behaviours: seldom it goes through the objects and answers what it sees, mostly it answers without looking. What
it can do is still there, behind the first words of a careful reply.
"""

import random
from collections.abc import Callable, Mapping

from tasks.tvr.language.answer import format_answer
from tasks.tvr.language.reasoning import careful_reply
from tasks.tvr.language.scene import ATTRIBUTES, Scene, Transformation
from tasks.tvr.pictures.sample_scenes import change_cell

CAREFUL_START = "<think> 0"
"""The first words of a careful reply, and of no other: a policy that is made to say them goes on carefully."""


def careful(rng: random.Random, before: Scene, after: Scene) -> str:
    """Go through the objects, and answer what was found."""
    return careful_reply(before, after)


def guess(rng: random.Random, before: Scene, after: Scene) -> str:
    """One change that might have been, without a look."""
    return format_answer(_guesses(rng, before, 1), "")


def enumerate_guesses(rng: random.Random, before: Scene, after: Scene) -> str:
    """Three to six changes that might have been."""
    return format_answer(_guesses(rng, before, rng.randint(3, 6)), "")


def say_nothing(rng: random.Random, before: Scene, after: Scene) -> str:
    """That nothing changed."""
    return format_answer((), "")


def break_tags(rng: random.Random, before: Scene, after: Scene) -> str:
    """A guess with one tag left out, which has no format."""
    tag = rng.choice(("</think>", "<answer>", "</answer>"))
    return " ".join(guess(rng, before, after).replace(tag, "").split())


BEHAVIOURS: dict[str, Callable[[random.Random, Scene, Scene], str]] = {
    "careful": careful,
    "guess": guess,
    "enumerate": enumerate_guesses,
    "silent": say_nothing,
    "broken": break_tags,
}


def draw_behaviour(rng: random.Random, shares: Mapping[str, float], before: Scene, after: Scene) -> str:
    """A reply of one of `BEHAVIOURS`, each as often as its share says."""
    (name,) = rng.choices(list(shares), list(shares.values()))
    return BEHAVIOURS[name](rng, before, after)


def _guesses(rng: random.Random, scene: Scene, count: int) -> tuple[Transformation, ...]:
    """So many different cells, in index order, each with a value that it does not have."""
    cells = [(index, attribute) for index in range(len(scene)) for attribute in ATTRIBUTES]
    return tuple(change_cell(rng, scene, *cell) for cell in sorted(rng.sample(cells, count)))
