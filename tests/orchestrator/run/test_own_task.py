"""A task of a user's own, in a folder outside this repository: nothing here knows of it, and it trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.config import ConfigError, load_run_config
from records.task import load_task

TASK = '''
"""Name the colour of a picture."""

import io
from pathlib import Path

from PIL import Image
from pydantic import BaseModel

from records.samples import Prompt
from records.task import ListedPrompts, Task

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200)}


class ColoursData(BaseModel):
    """The table [data] of a run file."""

    each: int = 4


class Colours(Task):
    data_config = ColoursData
    rules = {"named": lambda reply, gold, options: {"named": float(f" {gold} " in f" {reply} ")}}
    shares = ("named",)

    def open(self, data):
        names = [name for name in COLOURS for _ in range(data.each)]
        return ListedPrompts({split: [ask(f"{split}-{at}", name) for at, name in enumerate(names)]
                              for split in ("train", "test")}, identity=f"{data.each} of each colour")

    def columns(self, reply, gold, terms):
        return {"named": terms["named"]}


def ask(name, colour):
    file = io.BytesIO()
    Image.new("RGB", (48, 48), COLOURS[colour]).save(file, format="PNG")
    content = [{"type": "image"}, {"type": "text", "text": "what color ?"}]
    return Prompt(id=name, images=(file.getvalue(),), messages=({"role": "user", "content": content},), gold=colour)


COLOURS_TASK = Colours()
'''


def run_file(folder: Path, **changes: str) -> Path:
    """tiny_cpu.toml with the task and its data in place of TVR's."""
    shipped = Path("deploy/runs/tiny_cpu.toml").read_text()
    before, _, rest = shipped.partition("[data]")
    after = rest[rest.index("[rollout]") :].replace('rule = "star"\n', "")
    head = before.replace('model = "deploy/models/tiny"', f'model = "{Path("deploy/models/tiny").resolve()}"')
    path = folder / "run.toml"
    path.write_text(f'task = "{changes.get("task", "my_colours:COLOURS_TASK")}"\n{head}[data]\neach = 4\n\n{after}')
    return path


@pytest.mark.slow
def test_a_task_in_another_folder_trains_three_steps(tmp_path: Path):
    (tmp_path / "my_colours.py").write_text(TASK)
    path = run_file(tmp_path)
    settings = ["loop.steps=3", "loop.groups_per_step=6", "evaluation.max_samples=6", "rollout.kv_cache_mib=64"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "orchestrator.commands.cli", "train", str(path), "--out", "run", *overrides]
    root = str(Path.cwd())
    ended = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows] == [1, 2, 3]
    assert all(row["named"] == row["reward/named"] == row["reward"] for row in rows)
    assert all(row["answer_tokens"] > 0 for row in rows)
    assert "reward, named" in ended.stdout
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["after"]["metrics"] == {"named": found["after"]["reward"]["total"]}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"] == "4 of each colour"


@pytest.mark.parametrize(
    ("task", "code", "says"),
    [
        ("no_such_task", "", "is no task; give one of "),
        ("my_task:TASK", "", "the task 'my_task:TASK' cannot be imported (AttributeError: module 'my_task' has no"),
        ("my_task:TASK", "1 / 0", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("my_task:TASK", "TASK = 3", "is 3; it must be an instance of a class that extends records.task.Task"),
        (
            "my_task:TASK",
            "from records.task import Task\nclass Mine(Task):\n    rules = {'a': None}\n"
            "    def open(self, data): ...\nTASK = Mine()",
            "the task 'my_task:TASK' has no data_config; give its class one",
        ),
        (
            "my_task:TASK",
            "from records.task import Task\nclass Mine(Task):\n    rules = {}\nTASK = Mine()",
            "Can't instantiate abstract class Mine with",
        ),
    ],
)
def test_a_task_that_is_none_is_refused_with_what_it_lacks(
    task: str, code: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    (tmp_path / "my_task.py").write_text(code)
    path = run_file(tmp_path, task=task)
    with pytest.raises(ConfigError) as error:
        load_run_config(path)
    assert str(error.value).startswith(f"{path}: task = {task!r}: ")
    assert says in str(error.value)


def test_the_shipped_tasks_are_tasks():
    assert load_task("tvr").headline == "TAcc"
