"""The reasoning that a policy is taught: it goes through the objects one by one, and notes each change where it is.

A tiny policy has no words to spare, so all this goes without punctuation.
"""

from tasks.tvr.language.answer import format_answer
from tasks.tvr.language.scene import Scene, difference

SPOKEN = ("size", "color", "material", "shape")
"""The attributes in the order in which an object is named: `small red metal cube`."""


def list_objects(scene: Scene) -> str:
    """What stands in one picture, by index.

    >>> from tasks.tvr.language.scene import SceneObject
    >>> list_objects((SceneObject(color="red", shape="cube", size="large", material="metal"),))
    '0 large red metal cube'
    """
    return " ".join(f"{index} {item}" for index, item in enumerate(scene))


def compare_objects(before: Scene, after: Scene) -> str:
    """Each value before and after, side by side, and behind a value that changed its triplet.

    Side by side: three layers learn to compare neighbours; they did not learn to compare with the prompt's list. The
    triplet at once: to collect the changes afterwards, in another order, was not learnt either.

    >>> from dataclasses import replace
    >>> from tasks.tvr.language.scene import SceneObject
    >>> red = SceneObject(color="red", shape="cube", size="large", material="metal")
    >>> compare_objects((red,), (replace(red, color="blue"),))
    '0 large large red blue 0.color.blue metal metal cube cube'
    """
    words = []
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        words.append(str(index))
        for attribute in SPOKEN:
            words += [getattr(old, attribute), getattr(new, attribute)]
            if words[-1] != words[-2]:
                words.append(f"{index}.{attribute}.{words[-1]}")
    return " ".join(words)


def careful_reply(before: Scene, after: Scene) -> str:
    """Go through the objects, then answer with the changes in the order in which they were found."""
    changes = sorted(difference(before, after), key=lambda change: (change.index, SPOKEN.index(change.attribute)))
    return format_answer(tuple(changes), compare_objects(before, after))
