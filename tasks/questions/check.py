"""Every row of a data set of questions read, every picture decoded, and what it holds."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from records.pictures import decode
from records.task import SPLITS, Progress
from tasks.questions.dataset import QuestionSet

MAX_SHOWN = 20
"""Problems that are spelled out."""
COMMONEST = 8


def check(data: QuestionSet, progress: Progress) -> tuple[list[str], bool]:
    """Lines that say what is there and what is wrong, and whether all is well."""
    lines, problems, seen = [], [], set()
    for split in SPLITS:
        prompts = data.prompts(split)
        pictures, sizes, answers = Counter[int](), Counter[str](), Counter[str]()
        for number in range(len(prompts)):
            try:
                prompt = prompts[number]
                for place, encoded in enumerate(prompt.pictures, 1):
                    try:
                        sizes["x".join(map(str, decode(encoded).size))] += 1
                    except ValueError as error:
                        raise ValueError(f"{data.where(split, number)}: picture {place} {error}") from error
                if prompt.id in seen:
                    raise ValueError(
                        f"{data.where(split, number)}: has the id {prompt.id!r}, as an earlier one; rename it"
                    )
                seen.add(prompt.id)
                pictures[len(prompt.pictures)] += 1
                answers[prompt.gold.answer] += 1
            except ValueError as error:
                problems.append(str(error))
            progress(number + 1, len(prompts))
        lines += ["", f"{split}: {len(prompts)} questions, {len(answers)} different answers"]
        for name, counts in (("pictures", pictures), ("sizes", sizes), ("answers", answers)):
            lines.append(f"  {name:<9} {listed(counts)}")
    shown = [
        *problems[:MAX_SHOWN],
        *([f"... and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []),
    ]
    verdict = f"{len(problems)} problem{'s'[: len(problems) != 1]}" if problems else "OK"
    return [f"{data.folder}: {verdict}", *lines, *([""] if shown else []), *shown], not problems


def listed(counts: Mapping[Any, int]) -> str:
    """The commonest, as `name: count`.

    >>> listed({"2": 5, "1": 7})
    '1: 7, 2: 5'
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    more = f", {len(ranked) - COMMONEST} more" if len(ranked) > COMMONEST else ""
    return ", ".join(f"{name}: {count}" for name, count in ranked[:COMMONEST]) + more
