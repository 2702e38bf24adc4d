"""Counting as a task: one picture of the CLEVR-style scenes, "how many red things?".

It renders pictures and writes them as a data set of questions; everything else is that task's (`tasks/questions`).
"""

import os
import random
import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import datasets

from records.task import SPLITS, Progress
from tasks.counting.config import CountingConfig
from tasks.questions.config import QuestionsConfig
from tasks.questions.dataset import QuestionSet
from tasks.questions.rules import RULES
from tasks.questions.task import QuestionsTask
from tasks.tvr.data.dataset import alone_at
from tasks.tvr.language.scene import ATTRIBUTES, Scene
from tasks.tvr.pictures.render import in_parallel, render, to_png
from tasks.tvr.pictures.sample_scenes import sample_objects, sample_places

ANY = "any"
"""What is asked for: things of any look."""


class CountingTask(QuestionsTask):
    """Counting."""

    data_config = CountingConfig
    rules = {"number": RULES["number"], **RULES}  # noqa: RUF012 a constant, like its class; the first by default
    may_change = ("path", "workers")

    def make(self, data: Any, progress: Progress) -> None:
        if data.path.exists():
            return
        with alone_at(data.path):
            if not data.path.exists():
                render_folder(data, progress)

    def open(self, data: Any) -> QuestionSet:
        return QuestionSet(QuestionsConfig(path=data.path, by=("asked", "answer")))


def render_folder(config: CountingConfig, progress: Progress) -> None:
    """Write the data set; whole or not at all."""
    numbers = [(split, number) for split in SPLITS for number in range(getattr(config, split))]
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    found = {}
    for done, (place, made) in enumerate(in_parallel(partial(ask_about, config), numbers, config.workers), 1):
        found[place] = made
        progress(done, len(numbers))
    for split, number in numbers:
        rows[split] += found[split, number]
    part = config.path.with_name(f"{config.path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    datasets.DatasetDict({split: datasets.Dataset.from_list(rows[split]) for split in SPLITS}).save_to_disk(part)
    os.replace(part, config.path)


def ask_about(config: CountingConfig, place: tuple[str, int]) -> tuple[tuple[str, int], list[dict[str, Any]]]:
    """The questions about one picture; *place*, its split and number, decides all of them."""
    rng = random.Random(f"{config.seed}/{'/'.join(map(str, place))}")
    count, color = rng.randint(*config.objects), rng.choice(ATTRIBUTES["color"])
    matching = rng.randint(0, count)  # so that no number is common where few are red
    scene, *_ = sample_places(rng, lambda: [draw(rng, count, color, matching)], [(0, "center")], config.field_of_view)
    seed = rng.getrandbits(31)
    picture = to_png(render(scene, "center", config.size, config.spp, seed, config.field_of_view))
    return place, [
        {
            "images": [{"bytes": picture, "path": None}],
            "problem": f"<image> {asked} objects ?",
            "answer": str(sum(asked in (ANY, item.color) for item in scene)),
            "asked": asked,
        }
        for asked in (ANY, color)
    ]


def draw(rng: random.Random, count: int, color: str, matching: int) -> Scene:
    """*count* objects without places, of which *matching* have this *color*."""
    others = [value for value in ATTRIBUTES["color"] if value != color]
    objects = sample_objects(rng, count)
    return tuple(
        replace(item, color=color if number < matching else rng.choice(others)) for number, item in enumerate(objects)
    )


TASK = CountingTask()
