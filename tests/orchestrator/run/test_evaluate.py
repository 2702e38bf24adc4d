"""What an evaluation finds in held-out replies, and that they are kept as a file that can be scored again."""

import json
from dataclasses import replace
from pathlib import Path

from orchestrator.run.directory import RunDirectory
from orchestrator.run.evaluate import evaluate
from records.samples import Prompt, Sample
from tasks.tvr.data.dataset import load
from tasks.tvr.task import TASK
from tests.fakes import FakeRollouts, FakeScorer, make_prompt
from tests.orchestrator.evaluation.test_score import REPLIES, TRUTH, make_row, scored, write_data

# By the number in the prompt's id; two objects, and 0.color.blue is true.
ANSWERS = [
    "<think> 0 red blue 1 blue blue </think> <answer> 0.color.blue </answer>",  # careful, right, 1 triplet
    "<think> 0 turned blue </think> <answer> 0.color.blue, 1.size.large </answer>",  # wrong, 2 triplets
    "0.color.blue",  # malformed: 0 triplets
    "<think> 0 red 1 blue </think> <answer> </answer>",  # careful, wrong, 0 triplets
]


class ReplyingRollouts(FakeRollouts):
    """Gives each prompt, by id, its reply."""

    def __init__(self, replies: dict[str, str]) -> None:
        super().__init__([])
        self.replies = replies

    async def answer(self, prompt: Prompt) -> Sample:
        return replace(await super().answer(prompt), text=self.replies[prompt.id])


async def test_an_evaluation_has_the_means_and_the_replies_in_the_order_of_the_prompts():
    prompts = [make_prompt(f"{number}/basic/center") for number in range(4)]
    rollouts = ReplyingRollouts({prompt.id: text for prompt, text in zip(prompts, ANSWERS, strict=True)})
    told: list[int] = []
    found = await evaluate(TASK, rollouts, FakeScorer(), prompts, told.append, 64)
    assert found.report["careful"] == 2 / 4
    assert found.report["triplets"] == (1 + 2 + 0 + 0) / 4
    assert found.report["reward"] == {"total": 1.0, "all": 1.0}
    assert found.report["metrics"]["TAcc"] == 1 / 4
    assert [(reply.id, reply.text) for reply in found.replies] == list(rollouts.replies.items())
    assert {reply.num_tokens for reply in found.replies} == {2}
    assert (found.oldest, found.newest, told) == (0, 0, [1, 2, 3, 4])


async def test_the_file_of_an_evaluation_is_scored_to_the_same_metrics(tmp_path: Path):
    data = write_data(tmp_path / "data", [make_row(*row) for row in TRUTH.items()])
    prompts = list(load(data, "test"))
    found = await evaluate(TASK, ReplyingRollouts(REPLIES), FakeScorer(), prompts, lambda done: None, 64)
    out = tmp_path / "run"
    out.mkdir()
    RunDirectory(out).add_evaluation("version 20", found)
    assert [path.name for path in (out / "replies").iterdir()] == ["version-20.jsonl"]
    path = out / "replies" / "version-20.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"id": prompt.id, "reply": REPLIES[prompt.id], "num_tokens": 2, "reward": 1.0}
        | TASK.judge(REPLIES[prompt.id], prompt.gold, {}).columns
        for prompt in prompts
    ]
    assert {key: it["reply"] for key, it in RunDirectory(out).replies("version 20").items()} == REPLIES
    assert scored(data, path).found == {key: value for key, value in found.report.items() if key != "reward"}
