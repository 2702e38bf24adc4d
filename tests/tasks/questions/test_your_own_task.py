"""`docs/your-own-task.md`, word by word: the script, the run file and the rule that it prints, in an empty folder."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.commands.cli import main
from records.task import load_task
from tasks.questions.config import QuestionsConfig
from tiny_policy.make import make_tiny_policy

PAGE = Path("docs/your-own-task.md")
STEPS = ["--set", "loop.steps=3", "--set", "loop.groups_per_step=4", "--set", "evaluation.max_samples=20"]
MOST_LINES = 30

Run = Callable[..., str]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty, but for what the page says to write."""
    made = tmp_path_factory.mktemp("mine")
    script, rule = blocks("python")
    (made / "digits.py").write_text(script)
    (made / "near.py").write_text(rule)
    (made / "digits.toml").write_text(blocks("toml")[0])
    return made


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """A command of the page; returns what it says."""
    environment = os.environ | {
        "PYTHONPATH": str(Path.cwd()),
        "PATH": f"{Path('.venv/bin').resolve()}:{os.environ['PATH']}",
    }

    def call(*command: str) -> str:
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return call


def commands() -> list[list[str]]:
    """Those of the page, but for pip's."""
    lines = [line.replace("'", "").split() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line[0] != "pip"]


def test_the_script_that_makes_the_data_is_short():
    assert len(blocks("python")[0].splitlines()) <= MOST_LINES


@pytest.mark.slow
def test_the_page_works_from_an_empty_folder(folder: Path, run: Run):
    said = {}
    for command in commands():
        if (
            command[1] == "sft"
        ):  # a run of its own, of which tests have enough: reinforcement begins with the fresh policy
            continue
        short = [*STEPS, "--set", "model=tiny"] if command[1] == "train" else []
        said[" ".join(command[:3])] = run(*command, *short)
    assert "digits: OK" in said["star-r1 data check"]
    assert "train: 1500 questions, 10 different answers" in said["star-r1 data check"]
    assert (folder / "digits.html").read_text().count("data:image/png") == 60
    rows = [json.loads(line) for line in (folder / "trained" / "metrics.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows] == [1, 2, 3]
    assert rows[0]["reward"] == pytest.approx(rows[0]["reward/right"] + rows[0]["reward/format"], abs=1e-6)
    assert rows[0]["right"] == rows[0]["reward/right"]
    found = json.loads((folder / "trained" / "evaluation.json").read_text())["after"]
    assert found["num_samples"] == 20
    assert found["by"]["kind"].keys() == {"odd", "even"}
    assert "accuracy, kind even" in said["star-r1 train digits.toml"]
    assert "accuracy, answer 7" in said["star-r1 eval --model"]


@pytest.mark.slow
def test_replies_are_scored_by_the_rule_of_the_page_and_answers_that_a_rule_cannot_read_are_named(
    folder: Path, run: Run
):
    run("python", "digits.py")
    golds = load_task("questions").open(QuestionsConfig(path=folder / "digits")).golds("test")
    lines = [{"id": name, "reply": f"<think></think><answer>{gold.answer}</answer>"} for name, gold in golds]
    lines[0]["reply"] = "<think></think><answer>0</answer>"  # it is a 1
    (folder / "replies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = ["--task", "questions", "--data", "digits", "--replies", "replies.jsonl"]
    run("star-r1", "score", *told, "--rule", "near:near", "--json", "scores.json")
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["metrics"] == {"accuracy": 296 / 297, "well-formed replies": 1.0}
    assert scores["reward"]["near"] == pytest.approx(0.3 * (296 + 8 / 9) / 297)
    assert scores["samples"][0] == {
        "id": "test-0",
        "right": 0.0,
        "well_formed": True,
        "reward": pytest.approx(0.3 * 8 / 9),
        "parts": {"right": 0.0, "near": pytest.approx(0.3 * 8 / 9)},
    }


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["data.answer=solution"], "has no column 'solution', only images, problem, answer, kind; set data.answer"),
        (["reward_service.rule=choice"], "data: train-0, rule choice: its truth is no choice: '0' does not begin with"),
        (["reward_service.rule=chioce"], "'chioce' is no rule; give one of exact, choice, number, math, json, or"),
        (
            ["rollout.max_model_len=28"],
            "rollout.max_model_len = 28: prompt train-0 has 18 tokens and its answer up to 16",
        ),
        (["rollout.max_pictures=0"], "rollout.max_pictures = 0: prompt train-0 has 1 pictures; raise it to 1 or more"),
        (["data.learn=train"], "data.learn = 'train': unknown key"),
        (["data.path=nowhere"], "data: nowhere: is no folder that `datasets` saved"),
        (
            ["task=qestions"],
            "task = 'qestions': is no task; give one of counting, questions, tvr, or",
        ),
    ],
)
def test_what_cannot_be_used_is_said_before_any_worker_starts(
    folder: Path,
    run: Run,
    settings: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    if not (folder / "digits").exists():
        run("python", "digits.py")
    if not (folder / "tiny").exists():
        make_tiny_policy(folder / "tiny", seed=0)
    monkeypatch.chdir(folder)
    overrides = [part for setting in settings for part in ("--set", setting)]
    with pytest.raises(SystemExit) as ended:
        main(["train", "digits.toml", "--out", "refused", *overrides])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert says in said.err
    assert "starting the workers" not in said.out
    assert not (folder / "refused").exists()
