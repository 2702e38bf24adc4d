"""Sampled answers as trackers show them: the prompt's pictures side by side, the truth, the reply and its reward."""

import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from pydantic import BaseModel
from rich.console import Console

from records.pictures import decode_all
from records.samples import Prompt, ScoredGroup
from records.task import SPLITS, Task

GAP = 4
"""Pixels between pictures."""
WIDTH = 100
"""Characters of a line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PickedSample:
    """What is kept of one answer until a tracker takes it: neither pictures nor tokens."""

    id: str
    prompt_id: str
    gold: Any
    reply: str
    reward: float
    terms: Mapping[str, float]
    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSample:
    """*judged* is the truth and the marked reply, as the task shows them; *picture* is None without pictures.

    *version* is that of the oldest token.
    """

    id: str
    picture: Image.Image | None
    judged: str
    reply: str
    reward: float
    terms: Mapping[str, float]
    version: int

    @property
    def caption(self) -> str:
        terms = ", ".join(f"{name} {value:+g}" for name, value in self.terms.items())
        return f"{self.id}, version {self.version}: reward {self.reward:+g} ({terms})\n{self.judged}"


def pick(groups: Sequence[ScoredGroup], count: int) -> list[PickedSample]:
    """The first answer of each group, then the second ones, until there are *count*."""
    pairs = [
        (scored.group.prompt, sample, score)
        for scored in groups
        for sample, score in zip(scored.group.samples, scored.scores, strict=True)
    ]
    size = len(groups[0].scores)
    return [
        PickedSample(
            id=sample.id,
            prompt_id=prompt.id,
            gold=prompt.gold,
            reply=sample.text,
            reward=score.total,
            terms=score.parts,
            version=sample.trace.oldest_version,
        )
        for first in range(size)
        for prompt, sample, score in pairs[first::size]
    ][:count]


class SampleReader:
    """Fetches what is shown of picked samples; pictures come from the data set, which is opened when first needed."""

    def __init__(self, task: Task, data: BaseModel) -> None:
        self._task = task
        self._data = data
        self._lock = threading.Lock()
        self._prompts: Sequence[Prompt] = ()
        self._places: Mapping[str, int] = {}

    def show(self, picked: Sequence[PickedSample]) -> list[ShownSample]:
        """Raises ValueError or OSError if the data set cannot be read, and whatever the task's `show` does."""
        return [self._show(sample) for sample in picked]

    def _show(self, sample: PickedSample) -> ShownSample:
        judged = io.StringIO()
        Console(file=judged, width=WIDTH, color_system=None, emoji=False).print(
            self._task.show(sample.gold, {"reply": sample.reply}), markup=False, highlight=False
        )
        return ShownSample(
            id=sample.id,
            picture=side_by_side(decode_all(self._prompt(sample.prompt_id))),
            judged="\n".join(line.rstrip() for line in judged.getvalue().splitlines()),
            reply=sample.reply,
            reward=sample.reward,
            terms=sample.terms,
            version=sample.version,
        )

    def _prompt(self, prompt_id: str) -> Prompt:
        train, _ = SPLITS
        with self._lock:
            if not self._places:
                data = self._task.open(self._data)
                self._places = {name: place for place, name in enumerate(data.golds(train).ids())}
                self._prompts = data.prompts(train)
            return self._prompts[self._places[prompt_id]]


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image | None:
    """One picture of all, from left to right on white; None of none."""
    if not pictures:
        return None
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return row


def as_rows(samples: Sequence[ShownSample]) -> list[dict[str, Any]]:
    """For trackers that show tables, without the pictures: the same columns in all; a term that one has not is None."""
    terms = sorted({term for sample in samples for term in sample.terms})
    return [
        {
            "sample": it.id,
            "version": it.version,
            "judged": it.judged,
            "reply": it.reply,
            "reward": it.reward,
            **{term: it.terms.get(term) for term in terms},
        }
        for it in samples
    ]
