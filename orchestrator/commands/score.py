"""`star-r1 score | eval`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator.commands.arguments import TaskName, TaskSettings, opened, to_count
from orchestrator.config import ConfigError, first_of, scoring_config
from orchestrator.display import counting, say

if TYPE_CHECKING:
    from records.task import DataSet, Task
    from reward_service.rules import Rule as RuleFunction

Data = Annotated[Path, typer.Option(metavar="DIR", help="The data set that is asked.")]
Split = Annotated[str, typer.Option(metavar="NAME", help="Of the data set.")]
Rule = Annotated[
    str | None,
    typer.Option(metavar="RULE", help="Of the task (tvr: star, naive, no_object_tier ...) or package.module:function."),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="OUT", help="Also write all numbers, of every sample too.")
]


def score(
    data: Data,
    replies: Annotated[
        Path, typer.Option(metavar="FILE.jsonl", help='{"id": ..., "reply": ...} a line, each id once.')
    ],
    split: Split = "test",
    rule: Rule = None,
    task: TaskName = "tvr",
    settings: TaskSettings = None,
    out: Json = None,
) -> None:
    """Score replies that any model made, without a GPU or Ray."""
    _score(data, replies, split, out, *_opened(task, data, rule, settings or []))


def evaluate(
    model: Annotated[str, typer.Option(metavar="DIR", help="A model folder, or a name the endpoint knows.")],
    data: Data,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An OpenAI-compatible server (key: OPENAI_API_KEY); without it vLLM, here."),
    ] = None,
    replies: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Where to keep the replies (output/eval/RUN-DATA-SPLIT-DIGEST.jsonl, of its own for each policy).",
        ),
    ] = None,
    max_answer_tokens: Annotated[int, typer.Option(parser=to_count, metavar="N", help="Longest reply.")] = 512,
    split: Split = "test",
    rule: Rule = None,
    task: TaskName = "tvr",
    settings: TaskSettings = None,
    out: Json = None,
) -> None:
    """Ask a model for a greedy reply to every prompt and score them; goes on where it was stopped."""
    from orchestrator.evaluation.ask import ask_model, default_replies, describe

    learned, data_set, rule_function = _opened(task, data, rule, settings or [])  # what is wrong is said at once
    with opened():
        prompts = data_set.prompts(split)
    asked = describe(model, endpoint, data_set.identity, split, max_answer_tokens)
    kept = replies or default_replies(asked, data)
    console = Console()
    say(console, f"replies go to {kept}")
    try:
        with counting(console, "asking") as counter:
            asyncio.run(ask_model(asked, prompts, kept, counter))
    except* ConfigError as group:
        raise first_of(group) from None
    _score(data, kept, split, out, learned, data_set, rule_function)


def _opened(
    name: str, folder: Path, rule: str | None, settings: Sequence[str]
) -> tuple["Task", "DataSet", "RuleFunction"]:
    from records.task import load_task
    from reward_service.rules import load_rule

    config = scoring_config(name, folder, rule, settings)
    task = load_task(name)
    with opened():
        return (
            task,
            task.open(config.data),
            load_rule(task, config.reward_service.rule, config.reward_service.options),
        )


def _score(
    data: Path, replies: Path, split: str, out: Path | None, task: "Task", data_set: "DataSet", rule: "RuleFunction"
) -> None:
    from orchestrator.evaluation.score import print_report, score_replies, write_json

    console = Console()
    with opened():
        golds = data_set.golds(split)
    with counting(console, "scoring") as counter:
        report = score_replies(task, golds, replies, rule, where=f"{data}, split {split!r}", progress=counter)
    print_report(task, report, console)
    if out:
        write_json(report, out)
        say(console, f"wrote {out}")
