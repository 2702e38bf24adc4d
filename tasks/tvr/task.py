"""Transformation-driven visual reasoning as a task (`records.task`): two pictures, and what changed between them."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import RenderableType

from records.samples import Prompt
from records.task import SPLITS, Imitation, Progress, Reading, Task
from tasks.tvr.data.config import DataConfig
from tasks.tvr.data.dataset import RECIPE, GoldSet, PromptSet, check_folder, load, load_golds
from tasks.tvr.language.answer import Answer, format_answer
from tasks.tvr.language.behaviour import count_triplets, is_careful, objects_named
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.metrics import Judgement, MetricsReport, judge, summarise, table_rows
from tasks.tvr.language.reading import read_reply, true_changes
from tasks.tvr.language.reasoning import careful_reply
from tasks.tvr.language.scene import apply
from tasks.tvr.rules import RULES, StarOptions, parse_once
from tasks.tvr.show import show_replies


class Read(NamedTuple):
    """A reply judged, and what is found in it (`language/behaviour.py`); *triplets* counts those predicted."""

    judgement: Judgement
    careful: bool
    triplets: int

    @property
    def columns(self) -> Mapping[str, float]:
        """*exact*: the triplets, applied, reach exactly the true final state."""
        return {
            "well_formed": self.judgement.well_formed,
            "careful": self.careful,
            "exact": self.judgement.acc,
            "triplets": self.triplets,
        }

    def to_json(self) -> dict[str, Any]:
        return {"acc": self.judgement.acc, "diff": self.judgement.diff, "ndiff": self.judgement.ndiff}


class PairSet:
    """`records.task.DataSet`: a folder of picture pairs."""

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError."""
        check_folder(folder)
        self.folder = folder

    @property
    def identity(self) -> str:
        """The recipe, since the same one renders the same bytes, or what `datasets` says of each split."""
        recipe = self.folder / RECIPE
        if recipe.exists():
            return f"recipe {hashlib.sha256(recipe.read_bytes()).hexdigest()[:12]}"
        states = [self.folder / split / "state.json" for split in SPLITS]
        prints = [json.loads(state.read_text())["_fingerprint"] for state in states if state.exists()]
        return f"fingerprints {', '.join(prints)}"

    def prompts(self, split: str) -> PromptSet:
        return load(self.folder, split)

    def golds(self, split: str) -> GoldSet:
        return load_golds(self.folder, split)

    def longest(self, split: str) -> Sequence[Prompt]:
        """That of the scene with most objects, whose list is in the prompt."""
        counts = [len(gold.scene) for _, gold in self.golds(split)]
        return [self.prompts(split)[counts.index(max(counts))]]


class TransformationTask(Task):
    """TVR."""

    data_config = DataConfig
    rules = RULES
    rule_options = StarOptions
    may_change = ("path", "workers")
    shares = ("exact", "careful")
    headline = "TAcc"

    def make(self, data: DataConfig, progress: Progress) -> None:
        from tasks.tvr.data.rendered import ensure

        ensure(data, progress)

    def open(self, data: DataConfig) -> PairSet:
        return PairSet(data.path)

    def judge(self, reply: str, gold: Gold, terms: Mapping[str, float]) -> Read:
        """By the paper's metrics, whatever the rule."""
        answer = parse_once(reply)
        return Read(judge(answer, gold, num_tokens=None), is_careful(answer, gold.scene), count_triplets(answer))

    def report(self, judgements: Sequence[Read], mean_tokens: float | None) -> dict[str, Any]:
        """A `MetricsReport`, the share of *careful* replies and the mean number of *triplets*."""
        found = dataclasses.replace(summarise([each.judgement for each in judgements]), mean_tokens=mean_tokens)
        return dataclasses.asdict(found) | {
            "careful": sum(each.careful for each in judgements) / len(judgements),
            "triplets": sum(each.triplets for each in judgements) / len(judgements),
        }

    def table(self, reports: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float | None]]]:
        return table_rows([to_metrics(report) for report in reports])

    def right_answer(self, gold: Gold, imitation: Imitation) -> str:
        """With nothing to think, as the paper's baseline STAR-SFT learns from answers alone; or behind a reasoning that
        goes through the objects: an upper line, for who has that needs no reinforcement.
        """
        if imitation == "answer":
            return format_answer(gold.changes, reasoning="")
        return careful_reply(gold.scene, apply(gold.scene, gold.changes))

    def kind(self, gold: Gold) -> str:
        return gold.view

    def truth(self, gold: Gold) -> str:
        return true_changes(gold)

    def read(self, reply: str, gold: Gold) -> Reading:
        return read_reply(reply, gold)

    def behaviour(self, reply: str, gold: Gold) -> Mapping[str, float]:
        """As the paper looks at it: whether a reply goes through the objects one by one, how many it names, and how
        many changes it claims.
        """
        answer = parse_once(reply)
        named = len(objects_named(answer.reasoning, gold.scene)) if isinstance(answer, Answer) else 0
        return {
            "goes through the objects": float(is_careful(answer, gold.scene)),
            "objects named": float(named),
            "triplets predicted": float(count_triplets(answer)),
        }

    def show(self, gold: Gold, replies: Mapping[str, str]) -> RenderableType:
        return show_replies(gold, replies)

    def check(self, data: DataConfig, progress: Progress) -> tuple[list[str], bool]:
        from tasks.tvr.data.check import check, describe

        report = check(data.path, progress)
        return describe(report), not report.problems

    def write_page(self, data: DataConfig, out: Path, split: str | None, most: int) -> int:
        from tasks.tvr.data.show import write_page

        return write_page(data.path, out, split=split, max_pairs=most)


def to_metrics(report: Mapping[str, Any]) -> MetricsReport:
    """The part of a `report` that summarises."""
    return MetricsReport(**{field.name: report[field.name] for field in dataclasses.fields(MetricsReport)})


TASK = TransformationTask()
