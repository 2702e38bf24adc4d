"""What training changed in single held-out prompts: which of them are worth a look, and how these are shown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from records.samples import Prompt
from records.task import Task

Replies = Mapping[str, Mapping[str, Any]]
"""By id of the prompt, as `HeldOutReply.to_json` writes them."""


def choose_prompts(
    task: Task, prompts: Sequence[Prompt], before: Replies, after: Replies, count: int = 3
) -> list[Prompt]:
    """*count* of the *prompts* that have a reply, by id, *before* and *after*; fewer if there are no more.

    Those that were wrong and became right, but for one place; then those that stayed wrong, so that one sees what is
    left; then any. Each time the first of a kind (`Task.kind`) that is not yet among them, or else the first. The same
    arguments give the same prompts. A reply is right if the first of the task's shares is 1 in it.
    """
    replied = [prompt for prompt in prompts if prompt.id in before and prompt.id in after]
    fates = [tuple(_is_right(task, found[prompt.id]) for found in (before, after)) for prompt in replied]

    def which(right_before: bool, right_after: bool) -> list[Prompt]:
        return [prompt for prompt, fate in zip(replied, fates, strict=True) if fate == (right_before, right_after)]

    became_right, stayed_wrong = which(False, True), which(False, False)
    chosen = _of_other_kinds(task, [], became_right, count - 1)
    for candidates in (stayed_wrong, became_right, which(True, False), which(True, True)):
        chosen = _of_other_kinds(task, chosen, candidates, count)
    return chosen


def show_prompt(task: Task, prompt: Prompt, before: Replies, after: Replies) -> Group:
    """Its truth and both replies."""
    replies = {"before": before[prompt.id]["reply"], "after": after[prompt.id]["reply"]}
    return Group(Text(prompt.id, style="bold"), task.show(prompt.gold, replies))


def _is_right(task: Task, reply: Mapping[str, Any]) -> bool:
    return bool(task.shares) and reply[task.shares[0]] == 1


def _of_other_kinds(task: Task, chosen: list[Prompt], candidates: list[Prompt], count: int) -> list[Prompt]:
    """*chosen* and so many *candidates* that they are *count*, if there are."""
    known = {prompt.id for prompt in chosen}
    chosen, left = list(chosen), [prompt for prompt in candidates if prompt.id not in known]
    while left and len(chosen) < count:
        kinds = {task.kind(prompt.gold) for prompt in chosen}
        chosen.append(next((prompt for prompt in left if task.kind(prompt.gold) not in kinds), left[0]))
        left.remove(chosen[-1])
    return chosen
