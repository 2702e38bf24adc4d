"""A reply beside the true changes: which of its triplets are among them, and which of them it leaves out."""

from collections.abc import Sequence

from records.task import Claim, Reading
from tasks.tvr.language.answer import Malformed, parse
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.scene import Transformation


def true_changes(gold: Gold) -> str:
    """In words, on one line."""
    return ", ".join(map(str, gold.changes)) or "no change"


def read_reply(reply: str, gold: Gold) -> Reading:
    """A triplet is right if it is a true change that no earlier one has named. Never raises.

    >>> from tasks.tvr.language.scene import SceneObject
    >>> cube = SceneObject(color="red", shape="cube", size="large", material="metal")
    >>> gold = Gold(setting="basic", scene=(cube,), transformations=(Transformation(0, "color", "blue"),))
    >>> read_reply("<think>seen</think><answer>0.color.blue, 0.size.small</answer>", gold).claims
    (Claim(text='0.color.blue', right=True), Claim(text='0.size.small', right=False))
    """
    answer = parse(reply)
    if isinstance(answer, Malformed):
        return Reading(malformed=answer.reason, missing=tuple(map(str, gold.changes)))
    claims, missing = _judge(answer.triplets, gold.changes)
    return Reading(reasoning=answer.reasoning, claims=tuple(claims), missing=tuple(map(str, missing)))


def _judge(
    triplets: Sequence[Transformation], changes: Sequence[Transformation]
) -> tuple[list[Claim], list[Transformation]]:
    """What the *triplets* claim, and the *changes* that are not among them."""
    claims, missing = [], list(changes)
    for triplet in triplets:
        right = triplet in missing
        if right:
            missing.remove(triplet)
        claims.append(Claim(str(triplet), right))
    return claims, missing
