"""What a run says at its end, from a directory made by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from rich.console import Console

from orchestrator.run.directory import RunDirectory
from orchestrator.run.end import held_out_shares, show_imitation, show_training
from orchestrator.run.evaluate import report_on
from orchestrator.run.page import PAGE
from tasks.tvr.task import TASK
from tests.fakes import TRUE_REPLY, make_evaluation, make_held_out_reply, make_prompt
from tests.orchestrator.report.runs_by_hand import CONFIG

PROMPTS = [make_prompt(f"{number}/basic/center") for number in range(2)]
WRONG = "<think></think><answer></answer>"
ROWS = [
    {"step": step, "version": step, "reward": 1.0, "reward/all": 1.0, "loss": 0.5, "careful": 0.5, "exact": 0.25}
    for step in (1, 2, 3, 4)
]


def evaluated(directory: RunDirectory, name: str, texts: list[str], oldest: int, newest: int) -> None:
    replies = tuple(make_held_out_reply(prompt, text) for prompt, text in zip(PROMPTS, texts, strict=True))
    directory.add_evaluation(name, make_evaluation(report_on(TASK, replies), oldest, newest, replies))


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Of a run of 4 steps. Right are: 0 of 2 pairs before, 1 of 2 after."""
    made = RunDirectory(tmp_path)
    made.metrics.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    evaluated(made, "before", [WRONG, WRONG], 0, 0)
    evaluated(made, "after", [TRUE_REPLY, WRONG], 4, 4)
    return made


def said(show: Callable[..., None], directory: RunDirectory, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False, _environ={})
    with console.capture() as capture:
        show(console, TASK, directory, PROMPTS)
    return capture.get()


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_training_ends_with_tables_curves_and_pairs_in_80_columns(directory: RunDirectory):
    text = said(show_training, directory)
    assert in_order(
        text,
        "Greedy answers to held-out prompts",
        "Reward of sampled answers",
        "\nMean reward of sampled answers\n",
        "\nShares: c careful, e exact\n",
        "\nHeld-out prompts, before and after\n",
        "\n0/basic/center\n",  # became right
        "\n1/basic/center\n",
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


@pytest.mark.parametrize(("width", "curve_width"), [(60, 60), (80, 80), (200, 80)])
def test_curves_are_as_wide_as_the_terminal_but_80_columns_at_most(
    directory: RunDirectory, width: int, curve_width: int
):
    for show, title in ((show_training, "Mean reward of sampled answers"), (show_imitation, "Loss")):
        curve = said(show, directory, width).partition(f"\n{title}\n")[2].splitlines()[:15]
        assert curve[-1].split()[1] == "step"  # no line was broken
        assert max(map(len, curve)) == curve_width


def test_the_supervised_baseline_ends_with_its_metrics_its_loss_and_pairs(directory: RunDirectory):
    text = said(show_imitation, directory)
    assert in_order(text, "Greedy answers to held-out prompts", "\nLoss\n", "\nHeld-out prompts, before and after\n")
    assert "Reward of sampled answers" not in text


def test_evaluations_beside_training_are_points_with_those_before_and_after(directory: RunDirectory):
    assert held_out_shares(TASK, directory) == []
    evaluated(directory, "version 2", [TRUE_REPLY, TRUE_REPLY], 2, 3)
    assert held_out_shares(TASK, directory) == [(0, 0.0), (2, 1.0), (4, 0.5)]  # at the oldest version that answered
    text = said(show_training, directory)
    assert "\nShares: c careful, e exact, T held-out TAcc\n" in text
    assert sum(line.count("T") for line in text.partition("\nShares")[2].splitlines()[1:] if line[4:5] in "┤│") == 3


def test_a_run_without_held_out_pairs_has_only_its_steps_to_show(directory: RunDirectory):
    (directory.path / "evaluation.json").unlink()
    for path in (directory.path / "replies").iterdir():
        path.unlink()
    text = said(show_training, directory)
    assert "Reward of sampled answers" in text
    assert "eld-out" not in text


def test_a_run_leaves_its_page(directory: RunDirectory):
    (directory.path / "config.toml").write_text(tomli_w.dumps(CONFIG))
    for show in (show_training, show_imitation):
        said(show, directory)
        (directory.path / PAGE).unlink()
