"""What the system asks of a task, and the way from a name to one.

A task has prompts in splits, rules that pay for replies, and knows what to make of replies. A run file names it:
`task = "tvr"`, one of the folders in `tasks/`, or `package.module:name`, an instance of a class of one's own:

    class Colours(Task):
        data_config = ColoursData                  # a pydantic model, the table [data]: where the prompts are
        rules = {"exact": lambda reply, gold, options: {"exact": float(reply.strip() == gold)}}

        def open(self, data):                      # a DataSet
            return ListedPrompts({"train": [...], "test": [...]}, identity="colours, first edition")

    COLOURS = Colours()

Everything else has a default, to be replaced by what the task knows better.
"""

import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, overload

from pydantic import BaseModel, ConfigDict
from rich.console import RenderableType
from rich.text import Text

from records.pictures import decode_all
from records.samples import Prompt

SPLITS = ("train", "test")
"""Prompts to learn from, and those held out."""
SHIPPED = Path(__file__).parents[1] / "tasks"

Imitation = Literal["answer", "reasoning"]
"""What `sft` imitates: the right answers alone, or behind a reasoning."""
Progress = Callable[[int, int], None]
"""Called with the number that is done and the total."""
BuiltInRule = Callable[[str, Any, Any], Mapping[str, float]]
"""`rule(reply, gold, options)` returns the terms of the reward by name; *options* are the task's `rule_options`."""


class Judgement(Hashable, Protocol):
    """What a task finds in one reply. Equal ones are kept once: a million replies have some thousand."""

    @property
    def columns(self) -> Mapping[str, float]:
        """Numbers by name. A step's row has the mean of each over its samples; every judgement has the same."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What is written of it beside the reward of a reply."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A judgement that is its columns."""

    items: tuple[tuple[str, float], ...]

    @property
    def columns(self) -> Mapping[str, float]:
        return dict(self.items)

    def to_json(self) -> dict[str, Any]:
        return dict(self.items)


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that an answer says; *right* is None where the task cannot tell."""

    text: str
    right: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A reply beside the truth: the *reasoning*, what the answer *claims*, and what of the truth is *missing* in it.

    Of one that cannot be read *malformed* says why, and nothing is claimed.
    """

    reasoning: str = ""
    claims: tuple[Claim, ...] = ()
    missing: tuple[str, ...] = ()
    malformed: str | None = None

    @property
    def answer(self) -> str | None:
        """As text; None if the reply cannot be read."""
        return None if self.malformed is not None else ", ".join(claim.text for claim in self.claims)


class Golds(Protocol):
    """The truth of one split, without its pictures."""

    def __len__(self) -> int: ...

    def ids(self) -> list[str]: ...

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Id and truth, in the order of the prompts. Raises ValueError that names the row which makes no sense."""
        ...


class DataSet(Protocol):
    """The prompts of a task, opened. Its methods raise ValueError, with the remedy, for a split that is not there."""

    @property
    def identity(self) -> str:
        """By what the data are known, wherever they lie: what a run learned from must not change under it."""
        ...

    def prompts(self, split: str) -> Sequence[Prompt]: ...

    def golds(self, split: str) -> Golds: ...

    def longest(self, split: str) -> Sequence[Prompt]:
        """Those among which the longest is, all if nobody knows better: they are checked before any worker starts."""
        ...


class ReadPrompts(Sequence[Prompt]):
    """Prompts that are read when they are asked for."""

    @abstractmethod
    def read(self, number: int) -> Prompt:
        """Raises ValueError, which names the row, if it makes no sense."""

    @overload
    def __getitem__(self, at: int) -> Prompt: ...
    @overload
    def __getitem__(self, at: slice) -> list[Prompt]: ...
    def __getitem__(self, at: int | slice) -> Prompt | list[Prompt]:
        numbers = range(len(self))[at]
        return self.read(numbers) if isinstance(numbers, int) else [self.read(number) for number in numbers]


class PromptGolds:
    """`Golds` of *prompts*."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def ids(self) -> list[str]:
        return [prompt.id for prompt in self._prompts]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((prompt.id, prompt.gold) for prompt in self._prompts)


class ListedPrompts:
    """`DataSet` of prompts in memory, by split."""

    def __init__(self, splits: Mapping[str, Sequence[Prompt]], identity: str) -> None:
        self.identity = identity
        self._splits = splits

    def prompts(self, split: str) -> Sequence[Prompt]:
        if not self._splits.get(split):
            raise ValueError(
                f"there are no prompts in the split {split!r}, only in {', '.join(self._splits)}; add some"
            )
        return self._splits[split]

    def golds(self, split: str) -> PromptGolds:
        return PromptGolds(self.prompts(split))

    def longest(self, split: str) -> Sequence[Prompt]:
        return self.prompts(split)


class NoOptions(BaseModel):
    """Rules without options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(ABC):
    """A task; one instance of each, which holds nothing. See the text above.

    *data_config* and *rule_options*, which has defaults, are the tables `data` and `reward_service.options` of a run
    file, *rules* the values that `reward_service.rule` may have beside an import path, the first by default.
    *may_change* are the keys of `data` that do not decide what is learned. *shares* are columns that are shares of
    samples, shown as curves and the first in every step's line; *headline* is the metric of `report` whose rise is the
    aim, a share too.
    """

    data_config: ClassVar[type[BaseModel]]
    rules: ClassVar[Mapping[str, BuiltInRule]]
    rule_options: ClassVar[type[BaseModel]] = NoOptions
    may_change: ClassVar[Collection[str]] = ("path",)
    shares: ClassVar[tuple[str, ...]] = ()
    headline: ClassVar[str | None] = None

    @abstractmethod
    def open(self, data: Any) -> DataSet:
        """The data set that *data*, a `data_config`, describes.

        Raises ValueError or OSError, with the remedy, if it is not there or is not as *data* says.
        """

    def make(self, data: Any, progress: Progress) -> None:
        """Make the data set, if it is missing. Raises ValueError or OSError, also where it cannot be made."""
        self.open(data)

    def columns(self, reply: str, gold: Any, terms: Mapping[str, float]) -> Mapping[str, float]:
        """Numbers found in one *reply* that a rule gave these *terms*, by name; the same names for all."""
        return {}

    def judge(self, reply: str, gold: Any, terms: Mapping[str, float]) -> Judgement:
        """What is found in one *reply* that a rule gave these *terms*."""
        return Found(tuple(self.columns(reply, gold, terms).items()))

    def report(self, judgements: Sequence[Any], mean_tokens: float | None) -> dict[str, Any]:
        """What *judgements* of the replies to a split amount to, as JSON: `metrics` by name, and `num_samples`.

        None is the mean over nothing. *mean_tokens* is the mean length of the replies, if it is known.
        """
        names = judgements[0].columns if judgements else {}
        metrics = {name: sum(each.columns[name] for each in judgements) / len(judgements) for name in names}
        return {"num_samples": len(judgements), "metrics": metrics, "mean_tokens": mean_tokens}

    def table(self, reports: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float | None]]]:
        """Rows that put *reports* side by side: a name, and a value of each."""
        names = dict.fromkeys(name for report in reports for name in report["metrics"])
        rows = [(name, [report["metrics"].get(name) for report in reports]) for name in names]
        rows.append(("reply length, tokens", [report["mean_tokens"] for report in reports]))
        return [*rows, ("samples", [float(report["num_samples"]) for report in reports])]

    def right_answer(self, gold: Any, imitation: Imitation) -> str:
        """The reply that `sft` learns. Raises ValueError if there is none."""
        raise ValueError(f"the task {type(self).__name__} has no right answers to imitate; give it right_answer()")

    def kind(self, gold: Any) -> Hashable:
        """Of the prompt: where only some can be shown, they are of different kinds."""
        return None

    def truth(self, gold: Any) -> str:
        """In words, on one line."""
        return str(gold)

    def read(self, reply: str, gold: Any) -> Reading:
        """What *reply* says, beside the truth. Never raises, whatever the text."""
        return Reading(claims=(Claim(reply.strip(), None),))

    def behaviour(self, reply: str, gold: Any) -> Mapping[str, float]:
        """How *reply* comes to its answer, in numbers by name; the same names for all, a yes or no as 1 or 0."""
        return {}

    def show(self, gold: Any, replies: Mapping[str, str]) -> RenderableType:
        """The truth and *replies*, by what they are called, for a terminal."""
        lines = [("true", self.truth(gold)), *replies.items()]
        return Text("\n".join(f"  {name:<7} {printable(text)}" for name, text in lines))

    def check(self, data: Any, progress: Progress) -> tuple[list[str], bool]:
        """Lines that say what is found in a data set, read through to its last picture, and whether all is well."""
        data_set, counts, problems = self.open(data), [], []
        for split in SPLITS:
            prompts = data_set.prompts(split)
            for number, prompt in enumerate(prompts, 1):
                try:
                    decode_all(prompt)
                except ValueError as error:
                    problems.append(f"split {split}: {error}")
                progress(number, len(prompts))
            counts.append(f"split {split}: {len(prompts)} prompts")
        return [*counts, *problems], not problems

    def write_page(self, data: Any, out: Path, split: str | None, most: int) -> int:
        """Write *most* prompts and their truth as a page, *out*, and return how many. Raises ValueError."""
        raise ValueError(f"the task {type(self).__name__} has no page of its data; give it write_page()")


MOST_CHARACTERS = 300


def printable(text: str) -> str:
    """On one line, without characters that a terminal would obey, and without the middle if it is long."""
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


def load_named(name: str, what: str) -> Any:
    """What `package.module:name` names. Raises ValueError, which begins with *what*, where that leads nowhere.

    The current directory counts, after all other places, wherever the program itself was started from.
    """
    module_name, _, attribute = name.partition(":")
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        return getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # importing runs the module, which may raise anything
        raise ValueError(
            f"{what} {name!r} cannot be imported ({type(error).__name__}: {error}); check the name, and that the "
            "module is in the current directory, installed, or its folder on PYTHONPATH"
        ) from error


def load_task(name: str) -> Task:
    """The task of a run file. Raises ValueError if it cannot be imported, is no task or lacks a member."""
    known = sorted(file.parent.name for file in SHIPPED.glob("*/task.py"))
    if ":" not in name and name not in known:
        raise ValueError(f"is no task; give one of {', '.join(known)}, or package.module:name")
    task = load_named(name if ":" in name else f"tasks.{name}.task:TASK", "the task")
    if not isinstance(task, Task):
        raise ValueError(
            f"the task {name!r} is {task!r}; it must be an instance of a class that extends records.task.Task"
        )
    for member in ("data_config", "rules"):
        if not hasattr(task, member):
            raise ValueError(f"the task {name!r} has no {member}; give its class one")
    return task
