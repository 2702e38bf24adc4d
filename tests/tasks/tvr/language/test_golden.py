"""The worked examples in `tests/golden`: metrics and rewards, each with its working beside it."""

import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from reward_service.rules import load_rule, score
from tasks.tvr.language.answer import Answer, parse
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.metrics import Judgement, judge, summarise
from tasks.tvr.language.scene import Scene, SceneObject, Transformation
from tasks.tvr.rules import StarOptions
from tasks.tvr.task import TASK

FOLDER = Path(__file__).parents[3] / "golden"
METRICS = tomllib.loads((FOLDER / "metrics.toml").read_text())
REWARDS = tomllib.loads((FOLDER / "rewards.toml").read_text())


def by_name(examples: list[dict]) -> list:
    assert len({example["name"] for example in examples}) == len(examples)
    return [pytest.param(example, id=example["name"]) for example in examples]


def read_scene(lines: list[str]) -> Scene:
    """From lines such as `large red metal cube at 0, 1.5`."""
    objects = []
    for line in lines:
        words, _, place = line.partition(" at ")
        size, color, material, shape = words.split()
        x, y = map(float, place.split(","))
        objects.append(SceneObject(color=color, shape=shape, size=size, material=material, position=(x, y)))
    return tuple(objects)


def read_triplets(text: str) -> tuple[Transformation, ...]:
    parts = [triplet.strip().split(".") for triplet in text.split(",")]
    return tuple(
        Transformation(index=int(index), attribute=attribute, value=value) for index, attribute, value in parts
    )


def judged(example: dict) -> Judgement:
    scene = read_scene(METRICS["scenes"][example["scene"]])
    truth = read_triplets(example["truth"])
    gold = Gold(setting=example["setting"], scene=scene, transformations=truth, view=example["view"])
    return judge(parse(example["reply"]), gold, num_tokens=example["num_tokens"])


def as_number(written: Any) -> Any:
    """A fraction that is written as text, or what it is already."""
    return float(Fraction(written)) if isinstance(written, str) else written


@pytest.mark.parametrize("example", by_name(METRICS["example"]))
def test_a_worked_example_of_the_metrics(example):
    judgement = judged(example)
    found = {name: getattr(judgement, name) for name in example["expected"]}
    assert found == {name: pytest.approx(as_number(value)) for name, value in example["expected"].items()}


def test_every_basic_example_says_which_of_the_three_accuracies_hold():
    for example in METRICS["example"]:
        says = {"object_acc", "attribute_acc", "value_acc"} <= example["expected"].keys()
        assert says == (example["setting"] == "basic"), example["name"]


@pytest.mark.parametrize("part", ["metrics", "by_view", "by_objects", "by_changes"])
def test_the_summary_of_the_worked_examples(part):
    found = getattr(summarise([judged(example) for example in METRICS["example"]]), part)
    found = {name: value for name, value in found.items() if value is not None}
    assert found == {name: pytest.approx(as_number(value)) for name, value in METRICS["summary"][part].items()}


def test_the_counts_of_the_worked_examples():
    report = summarise([judged(example) for example in METRICS["example"]])
    for name in ("num_samples", "well_formed", "mean_tokens"):
        assert getattr(report, name) == pytest.approx(as_number(METRICS["summary"][name])), name


@pytest.mark.parametrize("example", by_name(REWARDS["example"]))
def test_a_worked_example_of_the_reward(example):
    gold = Gold(setting="event", scene=read_scene(REWARDS["scene"]), transformations=read_triplets(example["truth"]))
    switches = dict(example.get("config", {}))
    rule = load_rule(TASK, switches.pop("rule", "star"), StarOptions(**switches))
    scored = score(TASK, rule, example["reply"], gold)
    assert {name: value for name, value in scored.parts.items() if value} == example["terms"]
    assert scored.total == sum(example["terms"].values())


@pytest.mark.parametrize("example", by_name(REWARDS["example"]))
def test_the_working_of_a_reward_ends_with_its_sum(example):
    name, terms, total = example["working"].strip().splitlines()[-1].split(" = ")
    assert name == "total"
    numbers = terms.replace("- ", "-").replace("+ ", "").split()
    assert sum(map(float, numbers)) == float(total) == sum(example["terms"].values())


def test_every_kind_of_reply_has_a_worked_example():
    settings = {example["setting"] for example in METRICS["example"]}
    assert settings == {"basic", "event", "view"}
    well_formed = {isinstance(parse(example["reply"]), Answer) for example in METRICS["example"]}
    assert well_formed == {True, False}
    rules = {example.get("config", {}).get("rule", "star") for example in REWARDS["example"]}
    assert rules == {"star", "naive", "no_object_tier", "no_attribute_tier", "no_wrong_penalty", "no_inaction_penalty"}
