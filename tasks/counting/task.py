"""Counting as a task: one picture of the CLEVR-style scenes, and how many objects it shows.

It renders pictures and writes them as a data set of questions; everything else is that task's (`tasks/questions`).
"""

import json
import os
import random
import shutil
from functools import partial
from typing import Any

import datasets

from records.task import SPLITS, Progress
from tasks.counting.config import CountingConfig
from tasks.questions.config import QuestionsConfig
from tasks.questions.dataset import QuestionSet
from tasks.questions.rules import RULES
from tasks.questions.task import QuestionsTask
from tasks.tvr.data.dataset import RECIPE, alone_at
from tasks.tvr.data.rendered import how_recipes_differ
from tasks.tvr.pictures.render import in_parallel, render, to_png
from tasks.tvr.pictures.sample_scenes import sample_objects, sample_places

QUESTION = "final : <image> objects ?"
"""In words that the tiny policy knows."""


class CountingTask(QuestionsTask):
    """Counting."""

    data_config = CountingConfig
    rules = {"number": RULES["number"], **RULES}  # noqa: RUF012 a constant, like its class; the first by default
    may_change = ("path", "workers")

    def make(self, data: Any, progress: Progress) -> None:
        with alone_at(data.path):
            if not data.path.exists():
                render_folder(data, progress)
        if differing := how_recipes_differ(data.path, data.recipe()):
            remedy = "change the run file, remove the folder, or give another path"
            raise ValueError(f"{data.path} was rendered with {differing}; {remedy}")

    def open(self, data: Any) -> QuestionSet:
        return QuestionSet(QuestionsConfig(path=data.path, by=("answer",)))


def render_folder(config: CountingConfig, progress: Progress) -> None:
    """Write the data set; whole or not at all."""
    places = [(split, number) for split in SPLITS for number in range(getattr(config, split))]
    made: dict[tuple[str, int], dict[str, Any]] = {}
    for place, row in in_parallel(partial(_at, config), places, config.workers):
        made[place] = row
        progress(len(made), len(places))
    part = config.path.with_name(f"{config.path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    rows = {split: [made[place] for place in places if place[0] == split] for split in SPLITS}
    datasets.DatasetDict({split: datasets.Dataset.from_list(rows[split]) for split in SPLITS}).save_to_disk(part)
    (part / RECIPE).write_text(json.dumps(config.recipe(), indent=2) + "\n")
    os.replace(part, config.path)


def _at(config: CountingConfig, place: tuple[str, int]) -> tuple[tuple[str, int], dict[str, Any]]:
    return place, ask_about(config, place)


def ask_about(config: CountingConfig, place: tuple[str, int]) -> dict[str, Any]:
    """The row of one picture; *place*, its split and number, decides all of it."""
    rng = random.Random(f"{config.seed}/{'/'.join(map(str, place))}")
    count = rng.randint(*config.objects)
    scene, *_ = sample_places(rng, lambda: [sample_objects(rng, count)], [(0, "center")], config.field_of_view)
    seed = rng.getrandbits(31)
    picture = to_png(render(scene, "center", config.size, config.spp, seed, config.field_of_view))
    return {"images": [{"bytes": picture}], "problem": QUESTION, "answer": str(count)}


TASK = CountingTask()
