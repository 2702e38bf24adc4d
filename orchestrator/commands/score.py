"""`star-r1 score | eval`."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.commands.arguments import add_command, to_count
from orchestrator.config import ConfigError, first_of
from orchestrator.display import say

RULES = "star, naive, an ablation (no_object_tier, ...) or package.module:function (%(default)s)"


def add_score_commands(commands: Any) -> None:
    score = add_command(
        commands,
        "score",
        "score replies that any model made, without a GPU or Ray",
        "star-r1 score --data data/tiny --replies replies.jsonl --json scores.json",
    )
    score.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set that was asked")
    score.add_argument(
        "--replies",
        type=Path,
        required=True,
        metavar="FILE.jsonl",
        help='{"id": ..., "reply": ...} a line, each id once',
    )
    _add_table_arguments(score)
    score.set_defaults(run=run_score)

    evaluate = add_command(
        commands,
        "eval",
        "ask a model for a greedy reply to every pair and score them; goes on where it was stopped",
        "star-r1 eval --model output/try/model --data data/tiny\n"
        "  star-r1 eval --model NAME --endpoint http://localhost:8000/v1 --data data/tiny",
    )
    evaluate.add_argument("--model", required=True, metavar="DIR", help="a model folder, or a name the endpoint knows")
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set to ask")
    evaluate.add_argument(
        "--endpoint", metavar="URL", help="an OpenAI-compatible server (key: OPENAI_API_KEY); without it vLLM, here"
    )
    evaluate.add_argument(
        "--replies",
        type=Path,
        metavar="FILE.jsonl",
        help="where to keep the replies (output/eval/RUN-DATA-SPLIT-DIGEST.jsonl, of its own for each policy)",
    )
    evaluate.add_argument("--max-answer-tokens", type=to_count, default=512, metavar="N", help="default: %(default)s")
    _add_table_arguments(evaluate)
    evaluate.set_defaults(run=run_eval)


def _add_table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="test", metavar="NAME", help="of the data set (%(default)s)")
    parser.add_argument("--rule", default="star", metavar="RULE", help=RULES)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write all numbers, of every sample too")


def run_score(options: argparse.Namespace) -> None:
    _score(options, options.replies)


def run_eval(options: argparse.Namespace) -> None:
    from orchestrator.display import counting
    from orchestrator.evaluation.ask import ask_model, default_replies, describe
    from orchestrator.evaluation.score import reward_config
    from reward_service.rules import load_rule
    from tvr.data.dataset import load

    try:
        load_rule(reward_config(options.rule))  # a wrong one is said before anything is asked
        prompts = load(options.data, options.split)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error
    asked = describe(options.model, options.endpoint, options.data, options.split, options.max_answer_tokens)
    replies = options.replies or default_replies(asked, options.data)
    console = Console()
    say(console, f"replies go to {replies}")
    try:
        with counting(console, "asking") as counter:
            asyncio.run(ask_model(asked, prompts, replies, counter))
    except* ConfigError as group:
        raise first_of(group) from None
    _score(options, replies)


def _score(options: argparse.Namespace, replies: Path) -> None:
    from orchestrator.display import counting
    from orchestrator.evaluation.score import print_report, reward_config, score_replies, write_json

    console = Console()
    with counting(console, "scoring") as counter:
        reward = reward_config(options.rule)
        report = score_replies(options.data, replies, reward, split=options.split, progress=counter)
    print_report(report, console)
    if options.json:
        write_json(report, options.json)
        say(console, f"wrote {options.json}")
