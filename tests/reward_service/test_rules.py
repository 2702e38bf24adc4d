"""Reward rules, against numbers worked out by hand, and the worker that applies them."""

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.config import ScoringConfig, for_task
from records.samples import Score, ScoringFailure
from reward_service.actor import Reply, RewardWorker
from reward_service.rules import compute_parts, load_rule, score
from tasks.tvr.language.answer import Answer, parse
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.scene import SceneObject
from tasks.tvr.rules import StarOptions
from tasks.tvr.task import TASK

SCENE = (
    SceneObject(color="red", shape="cube", size="large", material="metal"),
    SceneObject(color="blue", shape="sphere", size="small", material="glass"),
    SceneObject(color="cyan", shape="cylinder", size="medium", material="rubber"),
)


def reply(triplets: str) -> str:
    return f"<think>so</think><answer>{triplets}</answer>"


def gold(triplets: str) -> Gold:
    answer = parse(reply(triplets))
    assert isinstance(answer, Answer)
    return Gold(setting="event", scene=SCENE, transformations=answer.triplets)


TRUE = gold("0.color.gray, 1.size.large")


def parts(text: str, true: Gold = TRUE, rule: str = "star", **switches) -> dict[str, float]:
    return score(TASK, load_rule(TASK, rule, StarOptions(**switches)), text, true).parts


def make_worker(rule: str = "star", concurrent_samples: int = 16) -> RewardWorker:
    """With room for this process, whatever other tests have left in it."""
    return RewardWorker("tvr", rule, StarOptions(), concurrent_samples, memory_mib=2**20)


def terms(form=0.0, value=0.0, attribute=0.0, object=0.0, miss=0.0, inaction=0.0) -> dict[str, float]:
    return {
        "format": form,
        "value": value,
        "attribute": attribute,
        "object": object,
        "miss": miss,
        "inaction": inaction,
    }


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        # both right: 1 + 5 + 5
        ("0.color.gray, 1.size.large", terms(1, value=10)),
        ("1.size.large, 0.color.gray", terms(1, value=10)),
        # one right, one short: 1 + 5 - 1
        ("0.color.gray", terms(1, value=5, inaction=-1)),
        # wrong value: 1 + 5 + 1.5 - 1
        ("0.color.green, 1.size.large", terms(1, value=5, attribute=1.5, miss=-1)),
        # wrong attribute: 1 + 5 + 0.5 - 1
        ("0.color.gray, 1.color.red", terms(1, value=5, object=0.5, miss=-1)),
        # wrong object: 1 + 5 - 1
        ("0.color.gray, 2.color.red", terms(1, value=5, miss=-1)),
        # one too many: 1 + 10 - 1
        ("0.color.gray, 1.size.large, 2.color.red", terms(1, value=10, miss=-1)),
        # said twice: the second matches nothing, and two were predicted: 1 + 5 - 1
        ("0.color.gray, 0.color.gray", terms(1, value=5, miss=-1)),
        # best first, whatever the order: the exact one takes the truth, the other is left over: 1 + 5 - 1
        ("0.color.green, 0.color.gray", terms(1, value=5, miss=-1)),
        # impossible in the scene, though the object is right: 0.5 - 1, and one short
        ("0.weight.heavy", terms(1, object=0.5, miss=-1, inaction=-1)),
        ("9.color.red, 9.color.blue", terms(1, miss=-2)),
        # silence: 1 - 2
        ("", terms(1, inaction=-2)),
    ],
)
def test_the_star_rule(predicted, expected):
    assert parts(reply(predicted)) == expected


def test_a_malformed_reply_predicts_nothing():
    assert parts("0.color.gray, 1.size.large") == terms(inaction=-2)  # 0 - 2


def test_a_repeated_triplet_does_not_take_another_truth_of_its_object():
    true = gold("0.color.gray, 0.size.small")
    # The repetition matches nothing (not 0.size.small as "object"): 1 + 5 - 1.
    assert parts(reply("0.color.gray, 0.color.gray"), true) == terms(1, value=5, miss=-1)
    # Two different guesses about one object match two truths, best first: 1 + 5 + 0.5 - 1.
    assert parts(reply("0.color.green, 0.size.small"), true) == terms(1, value=5, attribute=1.5, miss=-1)
    assert parts(reply("0.shape.sphere, 0.size.small"), true) == terms(1, value=5, object=0.5, miss=-1)


def test_no_true_change_and_none_predicted():
    assert parts(reply(""), gold("")) == terms(1)


@pytest.mark.parametrize(
    ("switch", "predicted", "expected"),
    [
        # without the object tier, 1.color.red is plainly wrong
        ({"object_tier": False}, "0.color.gray, 1.color.red", terms(1, value=5, miss=-1)),
        # without the attribute tier, 0.color.green has only its object right
        ({"attribute_tier": False}, "0.color.green, 1.size.large", terms(1, value=5, object=0.5, miss=-1)),
        ({"attribute_tier": False, "object_tier": False}, "0.color.green", terms(1, miss=-1, inaction=-1)),
        ({"wrong_penalty": False}, "9.color.red, 0.color.gray, 1.size.large", terms(1, value=10)),
        ({"inaction_penalty": False}, "", terms(1)),
        # partial matches are not wrong, the third (no such object) is: 1 + 1.5 + 0.5 - 1
        (
            {"partial_is_wrong": False},
            "0.color.green, 1.color.red, 9.size.large",
            terms(1, attribute=1.5, object=0.5, miss=-1),
        ),
        # a repetition does not count, neither as wrong nor as predicted: 1 + 5 - 1
        ({"duplicate_is_wrong": False}, "0.color.gray, 0.color.gray", terms(1, value=5, inaction=-1)),
        ({"rule": "no_object_tier"}, "0.color.gray, 1.color.red", terms(1, value=5, miss=-1)),
        ({"rule": "no_attribute_tier"}, "0.color.green, 1.size.large", terms(1, value=5, object=0.5, miss=-1)),
        ({"rule": "no_wrong_penalty"}, "9.color.red, 0.color.gray, 1.size.large", terms(1, value=10)),
        ({"rule": "no_inaction_penalty"}, "", terms(1)),
    ],
)
def test_each_switch_takes_out_its_term(switch, predicted, expected):
    assert parts(reply(predicted), **switch) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (reply("1.size.large, 0.color.gray"), {"format": 1.0, "exact": 5.0}),
        (reply("0.color.gray"), {"format": 1.0, "exact": 0.0}),
        (reply("0.color.gray, 0.color.gray, 1.size.large"), {"format": 1.0, "exact": 0.0}),
        ("0.color.gray, 1.size.large", {"format": 0.0, "exact": 0.0}),
    ],
)
def test_the_naive_rule_pays_for_the_whole_answer_only(text, expected):
    assert parts(text, rule="naive") == expected


def test_the_naive_constant_is_a_setting():
    assert parts(reply("0.color.gray, 1.size.large"), rule="naive", naive_reward=2.0)["exact"] == 2.0


def brevity(text: str, gold: Gold) -> dict[str, float]:
    return {"short": 1.0 if len(text) < 10 else -0.5}


def broken(text: str, gold: Gold) -> dict[str, float]:
    return {"ratio": 1 / len(text)}


def unbounded(text: str, gold: Gold) -> dict[str, float]:
    return {"ratio": float("nan")}


def nameless(text: str, gold: Gold) -> float:
    return 1.0


def leaving(text: str, gold: Gold) -> dict[str, float]:
    sys.exit(0)


def cancelled(text: str, gold: Gold) -> dict[str, float]:
    raise asyncio.CancelledError


def hyphenated(text: str, gold: Gold) -> dict[str, float]:
    return {"fine": 1.0, "exact-match": 1.0}


def spoken(text: str, gold: Gold) -> dict[str, Any]:
    return {"ratio": "1.5"}


HERE = "tests.reward_service.test_rules"


def replies(*texts: str) -> list[Reply]:
    return [Reply(sample_id=f"1/{at}", text=text, gold=TRUE) for at, text in enumerate(texts)]


async def test_a_worker_scores_replies_in_order():
    scores = await make_worker().score(replies("no tags", reply("0.color.gray, 1.size.large")))
    assert [item.total for item in scores] == [-2.0, 11.0]
    assert [item.judgement.columns["well_formed"] for item in scores] == [False, True]


async def test_a_users_rule_is_found_by_its_import_path():
    scores = await make_worker(rule=f"{HERE}:brevity").score(replies("short", "a longer reply"))
    assert [item.total for item in scores] == [1.0, -0.5]


@pytest.mark.parametrize(
    ("rule", "texts", "failed", "cause"),
    [
        ("broken", ("ok", ""), "1/1", "ZeroDivisionError"),
        ("unbounded", ("ok",), "1/0", "finite"),
        ("nameless", ("ok",), "1/0", "dict of named terms"),
        ("leaving", ("ok",), "1/0", r"the rule ended with SystemExit(0); it must return its terms"),
        ("cancelled", ("ok",), "1/0", "the rule ended with CancelledError()"),
        ("hyphenated", ("ok",), "1/0", "named a term 'exact-match'; a name must be of letters, digits and underscores"),
        ("spoken", ("ok",), "1/0", "the rule returned '1.5' for the term 'ratio'; it must be a number"),
    ],
)
async def test_a_rule_that_fails_is_a_failure_with_its_cause_and_no_reward(rule, texts, failed, cause):
    *others, last = await make_worker(rule=f"{HERE}:{rule}").score(replies(*texts))
    assert all(isinstance(other, Score) for other in others)  # a sample's failure is its own
    assert isinstance(last, ScoringFailure)
    assert last.sample_id == failed
    assert cause in last.cause
    assert "Traceback" in last.cause


@pytest.mark.parametrize("name", ["", "a b", "[/b]", "part:1", "größe", "a\n", 3, None])
def test_a_name_that_cannot_be_a_gauge_is_refused(name):
    with pytest.raises(ValueError, match="a name must be of letters, digits and underscores"):
        compute_parts(lambda text, gold: {name: 1.0}, "", TRUE)


@pytest.mark.parametrize("value", ["1", None, [1.0], 1j, {}])
def test_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="for the term 'a_1'; it must be a number"):
        compute_parts(lambda text, gold: {"a_1": value}, "", TRUE)


@pytest.mark.parametrize(
    ("value", "number"), [(True, 1.0), (False, 0.0), (3, 3.0), (np.float32(0.5), 0.5), (np.int64(-2), -2.0)]
)
def test_every_kind_of_number_counts(value, number):
    (part,) = compute_parts(lambda text, gold: {"B9": value}, "", TRUE).values()
    assert (part, type(part)) == (number, float)


def test_a_rule_in_the_current_directory_is_found_after_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    Path("rule_of_mine_alone.py").write_text("def rule(reply, gold): return {'mine': 4}\n")
    for _ in range(2):
        assert compute_parts(load_rule(TASK, "rule_of_mine_alone:rule", None), "", TRUE) == {"mine": 4.0}
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("code", "cause"),
    [("import sys; sys.exit(0)", "SystemExit: 0"), ("1 / 0", "ZeroDivisionError"), ("def", "SyntaxError")],
)
def test_a_rule_whose_module_fails_is_refused_at_the_start(code, cause, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_rule.py").write_text(code)
    with pytest.raises(ValueError, match=rf"'failing_rule:rule' cannot be imported \({cause}"):
        make_worker(rule="failing_rule:rule")


GATE = threading.Event()


def patient(reply: str, truth: Gold) -> dict[str, float]:
    assert GATE.wait(60)
    return {"patience": 1.0}


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_full_pool_says_so_and_one_with_room_does_not():
    GATE.clear()
    worker = make_worker(rule=f"{HERE}:patient", concurrent_samples=2)
    two = asyncio.create_task(worker.score(replies("a", "b")))
    await settle()
    roomy = await worker.load()
    third = asyncio.create_task(worker.score(replies("c")))
    await settle()
    full = await worker.load()
    GATE.set()
    await asyncio.gather(two, third)
    rest, after = await worker.load(), await worker.load()
    assert (roomy.full_s, roomy.longest_wait_s) == (0, 0)
    assert full.full_s > 0
    assert full.longest_wait_s > 0
    assert rest.longest_wait_s > full.longest_wait_s  # of the same sample, which waited on
    assert (after.full_s, after.longest_wait_s) == (0, 0)


@pytest.mark.parametrize("rule", ["no_such_module:rule", f"{HERE}:no_such_function"])
def test_a_rule_that_is_not_there_is_refused_at_the_start(rule):
    with pytest.raises(ValueError, match="cannot be imported"):
        make_worker(rule=rule)


@pytest.mark.parametrize("setting", [{"rule": "best"}, {"workers": 0}, {"timeout_s": 0}, {"tier": True}])
def test_a_wrong_config_is_refused(setting):
    config = for_task(ScoringConfig, TASK).model_fields["reward_service"].annotation
    assert config().rule == "star"
    with pytest.raises(ValidationError):
        config(**setting)
