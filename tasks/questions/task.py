"""Anyone's questions as a task (`records.task`): pictures, a question, an answer."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel
from rich.console import RenderableType
from rich.text import Text

from records.task import Claim, Imitation, Progress, Reading, Task, printable
from tasks.questions.config import QuestionsConfig
from tasks.questions.dataset import QuestionSet
from tasks.questions.rules import RULES, QuestionOptions
from tasks.questions.truth import Truth, read_answer, write_answer

MOST_VALUES = 20
"""Of a column by which accuracy is told: the others are left out of tables."""


class Answered(NamedTuple):
    """A reply: how *right* the rule found it, from 0 to 1, whether it has the form, and the question's groups."""

    right: float
    well_formed: bool
    groups: tuple[tuple[str, str], ...]

    @property
    def columns(self) -> Mapping[str, float]:
        return {"right": self.right, "well_formed": self.well_formed}

    def to_json(self) -> dict[str, Any]:
        return {"right": self.right, "well_formed": self.well_formed, **dict(self.groups)}


class QuestionsTask(Task):
    """Questions with one true answer each."""

    data_config: ClassVar[type[BaseModel]] = QuestionsConfig
    rules = RULES
    rule_options = QuestionOptions
    shares = ("right", "well_formed")
    headline = "accuracy"

    def open(self, data: Any) -> QuestionSet:
        return QuestionSet(data)

    def judge(self, reply: str, gold: Truth, terms: Mapping[str, float]) -> Answered:
        if "right" not in terms:
            raise ValueError(
                f"the rule returned {dict(terms)}, without the term `right`, which the accuracy is; add it"
            )
        return Answered(terms["right"], read_answer(reply, gold.form) is not None, gold.groups)

    def report(self, judgements: Sequence[Answered], mean_tokens: float | None) -> dict[str, Any]:
        """*by* has, by column and value, the accuracy and the number of questions."""
        by: dict[str, dict[str, Any]] = {}
        for each in judgements:
            for column, value in each.groups:
                by.setdefault(column, {}).setdefault(value, []).append(each.right)
        return {
            "num_samples": len(judgements),
            "metrics": {
                "accuracy": _mean([each.right for each in judgements]),
                "well-formed replies": _mean([each.well_formed for each in judgements]),
            },
            "by": {
                column: {
                    value: {"accuracy": _mean(found), "num_samples": len(found)} for value, found in values.items()
                }
                for column, values in by.items()
            },
            "mean_tokens": mean_tokens,
        }

    def table(self, reports: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float | None]]]:
        """Accuracy first, then by the commonest values of each column."""
        head, *rest = super().table(reports)
        rows = [head]
        for column in dict.fromkeys(column for report in reports for column in report["by"]):
            counts: dict[str, int] = {}
            for report in reports:
                for value, found in report["by"].get(column, {}).items():
                    counts[value] = max(counts.get(value, 0), found["num_samples"])
            for value in sorted(sorted(counts, key=lambda each: -counts[each])[:MOST_VALUES]):
                found = [report["by"].get(column, {}).get(value) for report in reports]
                rows.append(
                    (f"accuracy, {column} {value}", [None if one is None else one["accuracy"] for one in found])
                )
        return [*rows, *rest]

    def right_answer(self, gold: Truth, imitation: Imitation) -> str:
        if imitation == "reasoning" and not gold.reasoning:
            raise ValueError(
                "learner.imitation is reasoning, and there is none in the data; name its column in data.reasoning"
            )
        return write_answer(gold, gold.reasoning if imitation == "reasoning" else "")

    def kind(self, gold: Truth) -> str:
        return gold.answer

    def truth(self, gold: Truth) -> str:
        return printable(gold.answer)

    def read(self, reply: str, gold: Truth) -> Reading:
        """Of an answer in other words than the true one only a rule can tell whether it is right."""
        said = read_answer(reply, gold.form)
        if said is None:
            return Reading(malformed=f"the reply has not the form {gold.form}", missing=(gold.answer,))
        return Reading(reasoning=_before(said, reply), claims=(Claim(said, True if said == gold.answer else None),))

    def show(self, gold: Truth, replies: Mapping[str, str]) -> RenderableType:
        shown = Text(f"  true    {printable(gold.answer)}")
        for name, reply in replies.items():
            said = read_answer(reply, gold.form)
            shown.append(f"\n  {name:<7} ")
            shown.append("malformed" if said is None else printable(said) or "nothing", "" if said else "red")
            shown.append(f"\n          {printable(reply)}", "dim")
        return shown

    def check(self, data: Any, progress: Progress) -> tuple[list[str], bool]:
        from tasks.questions.check import check

        return check(self.open(data), progress)

    def write_page(self, data: Any, out: Path, split: str | None, most: int) -> int:
        from tasks.questions.page import write_page

        return write_page(self.open(data), out, split, most)


def _before(said: str, reply: str) -> str:
    """What stands before the answer, without the tags around it."""
    return re.sub(r"</?(?:think|answer)>|\\boxed\{$", " ", reply[: reply.rfind(said)]).strip()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


TASK = QuestionsTask()
