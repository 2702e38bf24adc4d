"""How a reply comes to its answer, beside whether it is right. Pure; called for every sample and held-out reply."""

import re

from tasks.tvr.language.answer import Answer, Malformed
from tasks.tvr.language.scene import Scene

# A word-level tokeniser writes "1 . color . blue". Begins only where the digits do, and gives nothing back: linear in
# the length of the text.
_TRIPLET = re.compile(r"\b[0-9]++\s*+\.\s*+[A-Za-z_]++\s*+\.\s*+[A-Za-z0-9_-]++")
# Not the "1" of "x1", "1st" or "1.5"; but that of "1." at the end of a sentence.
_NUMBER = re.compile(r"\b(?<![0-9]\.)[0-9]++\b(?!\.[0-9])")


def goes_through_objects(reasoning: str, scene: Scene) -> bool:
    """Whether *reasoning* goes through the objects of *scene* in sight, one by one.

    Triplets taken out, each object's index stands there as a word of its own, for the first time after those of the
    objects before it.

    >>> from tasks.tvr.language.scene import SceneObject
    >>> cube = SceneObject(color="red", shape="cube", size="large", material="metal")
    >>> goes_through_objects("0 is as it was . 1 turned blue", (cube, cube))
    True
    >>> goes_through_objects("0.color.blue, 1.size.small", (cube, cube))
    False
    """
    return objects_named(reasoning, scene) == _in_sight(scene)


def objects_named(reasoning: str, scene: Scene) -> list[str]:
    """The indices of the objects of *scene* in sight that stand in *reasoning* as words of their own, triplets taken
    out, in the order of their first appearance.

    >>> from tasks.tvr.language.scene import SceneObject
    >>> cube = SceneObject(color="red", shape="cube", size="large", material="metal")
    >>> objects_named("1 turned blue, unlike 0. So 1.color.blue; 7 does not exist", (cube, cube))
    ['1', '0']
    """
    known = _in_sight(scene)
    numbers = _NUMBER.findall(_TRIPLET.sub(" ", reasoning))
    return list(dict.fromkeys(number for number in numbers if number in known))


def _in_sight(scene: Scene) -> list[str]:
    return [str(index) for index, item in enumerate(scene) if item.in_sight]


def is_careful(answer: Answer | Malformed, scene: Scene) -> bool:
    """Whether a reply is well-formed and its reasoning goes through the objects."""
    return isinstance(answer, Answer) and goes_through_objects(answer.reasoning, scene)


def count_triplets(answer: Answer | Malformed) -> int:
    """How many changes a reply claims, repeated ones included; a malformed one claims none."""
    return len(answer.triplets) if isinstance(answer, Answer) else 0
