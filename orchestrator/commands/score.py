"""`star-r1 score | eval`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.arguments import to_count
from orchestrator.config import ConfigError, first_of
from orchestrator.display import counting, say

Data = Annotated[Path, typer.Option(metavar="DIR", help="The data set that is asked.")]
Split = Annotated[str, typer.Option(metavar="NAME", help="Of the data set.")]
Rule = Annotated[
    str,
    typer.Option(metavar="RULE", help="star, naive, an ablation (no_object_tier, ...) or package.module:function."),
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
    rule: Rule = "star",
    out: Json = None,
) -> None:
    """Score replies that any model made, without a GPU or Ray."""
    from orchestrator.evaluation.score import print_report, reward_config, score_replies, write_json

    console = Console()
    with counting(console, "scoring") as counter:
        report = score_replies(data, replies, reward_config(rule), split=split, progress=counter)
    print_report(report, console)
    if out:
        write_json(report, out)
        say(console, f"wrote {out}")


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
    rule: Rule = "star",
    out: Json = None,
) -> None:
    """Ask a model for a greedy reply to every pair and score them; goes on where it was stopped."""
    from orchestrator.evaluation.ask import ask_model, default_replies, describe
    from orchestrator.evaluation.score import reward_config
    from reward_service.rules import load_rule
    from tvr.data.dataset import load

    try:
        load_rule(reward_config(rule))  # a wrong one is said before anything is asked
        prompts = load(data, split)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error
    asked = describe(model, endpoint, data, split, max_answer_tokens)
    kept = replies or default_replies(asked, data)
    console = Console()
    say(console, f"replies go to {kept}")
    try:
        with counting(console, "asking") as counter:
            asyncio.run(ask_model(asked, prompts, kept, counter))
    except* ConfigError as group:
        raise first_of(group) from None
    score(data, kept, split, rule, out)
