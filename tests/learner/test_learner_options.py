"""What can be switched on beside the plain step: offload, frozen parts, adapters, KL, schedules; and refused steps."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from learner.checkpoint import find_newest
from learner.engine import NonFiniteStep
from learner.refused import load_refused
from records.samples import ScoredGroup
from tests.learner.plain_step import (
    LEARNING_RATE,
    TEMPERATURE,
    assert_same_step,
    assert_same_update,
    gradient_difference,
    plain_torch_step,
)

BASE: dict[str, Any] = {"learning_rate": LEARNING_RATE, "max_grad_norm": 1000.0, "row_tokens": 512}
LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 12}
IN_BFLOAT16: dict[str, Any] = BASE | {"dtype": "bfloat16"}
KL_IN_REWARD = {"kl_weight": 0.2, "kl_in": "reward", "kl_estimator": "k1"}

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def groups(make_group: Callable[..., Any]) -> tuple[ScoredGroup, ...]:
    return (
        make_group(0, [3, 14, 1, 6]),
        make_group(2, [2, 9, 4], sizes=((96, 48), (48, 80))),
        make_group(4, [7, 8, 2], sizes=((112, 80), (112, 80)), objects=2),
    )


@pytest.fixture(scope="module")
def bad(make_group: Callable[..., Any]) -> ScoredGroup:
    """The samples' log-probs under the sampler are far below the policy's: the ratios are about e^145."""
    return make_group(5, [2, 3], rewards=[1.0, 0.0], logprob=-150.0)


@pytest.fixture(scope="module")
def steep(make_group: Callable[..., Any]) -> ScoredGroup:
    """The advantages, unscaled, are 1e38 and -1e38, which float32 holds, and the loss too; what goes back is not."""
    return make_group(6, [2, 3], rewards=[1e38, -1e38])


def make_jobs(groups: tuple[ScoredGroup, ...], bad: ScoredGroup, steep: ScoredGroup) -> dict[str, dict[str, Any]]:
    refused = {
        f"bad, stage {stage}": {"config": BASE | {"zero_stage": stage}, "steps": [(*groups, bad)]}
        for stage in (0, 2, 3)
    }
    jobs: dict[str, dict[str, Any]] = {
        "stage 2": {"config": BASE, "steps": [groups]},
        **{
            f"offload, stage {n}": {"config": BASE | {"zero_stage": n, "offload_optimizer": True}, "steps": [groups]}
            for n in (1, 2, 3)
        },
        "frozen vision": {"config": BASE | {"freeze": "vision"}, "steps": [groups]},
        "frozen language": {"config": BASE | {"freeze": "language"}, "steps": [groups]},
        **{
            f"adapters, stage {n}": {
                "config": BASE | LORA | {"zero_stage": n},
                "steps": [groups, groups],
                "checkpoint_after": 1,
            }
            for n in (0, 2, 3)
        },
        **{
            f"adapters in bfloat16, stage {n}": {
                "config": IN_BFLOAT16 | LORA | {"zero_stage": n},
                "steps": [groups] * 3,
            }
            for n in (2, 3)
        },
        **{
            f"model of adapters, stage {n}": {
                "config": IN_BFLOAT16,
                "steps": [groups],
                "model": f"adapters in bfloat16, stage {n}",
            }
            for n in (2, 3)
        },
        "adapters, stage 3, checkpointing": {
            "config": BASE | LORA | {"zero_stage": 3, "gradient_checkpointing": True},
            "steps": [groups, groups],
        },
        "adapters, vision frozen": {"config": BASE | LORA | {"freeze": "vision"}, "steps": [groups, groups]},
        "adapters and kl": {"config": BASE | LORA | {"loss": {"kl_weight": 0.1}}, "steps": [groups, groups]},
        "kl, stage 3": {"config": BASE | {"loss": {"kl_weight": 0.1}, "zero_stage": 3}, "steps": [groups, groups]},
        "kl, stage 2": {"config": BASE | {"loss": {"kl_weight": 0.1}}, "steps": [groups, groups]},
        "kl in the reward": {"config": BASE | {"loss": KL_IN_REWARD}, "steps": [groups]},
        "cosine": {
            "config": BASE | {"schedule": "cosine", "warmup_steps": 1},
            "steps": [groups] * 3,
            "job": {"steps": 3},
        },
        **refused,
        "steep": {"config": BASE | {"loss": {"advantage_scaling": "none"}}, "steps": [(*groups, steep)]},
    }
    for job in jobs.values():
        job["job"] = {"temperature": TEMPERATURE} | job.get("job", {})
    return jobs


def in_folder(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    placed = job | {"job": job["job"] | {"folder": str(folder)}, "save": str(folder / "model")}
    return placed | {"model": str(folder.parent / job["model"] / "model")} if "model" in job else placed


@pytest.fixture(scope="module")
def alone(
    run_ranks: Callable[..., Any], groups: Any, bad: ScoredGroup, steep: ScoredGroup, tmp_path_factory: Any
) -> Results:
    jobs = make_jobs(groups, bad, steep)
    root = tmp_path_factory.mktemp("runs")
    (results,) = run_ranks(1, {name: in_folder(job, root / name) for name, job in jobs.items()})
    return {name: result | {"folder": root / name} for name, result in results.items()}


@pytest.fixture(scope="module")
def pair(
    run_ranks: Callable[..., Any], groups: Any, bad: ScoredGroup, steep: ScoredGroup, tmp_path_factory: Any
) -> list[Results]:
    jobs = make_jobs(groups, bad, steep)
    both = ("adapters in bfloat16, stage 3", "model of adapters, stage 3", "adapters, stage 3, checkpointing")
    kept = (
        *both,
        "offload, stage 2",
        "adapters, stage 3",
        "kl, stage 3",
        "kl in the reward",
        "bad, stage 0",
        "bad, stage 3",
    )
    root = tmp_path_factory.mktemp("runs")
    results = run_ranks(2, {name: in_folder(jobs[name], root / name) for name in kept})
    return [{name: result | {"folder": root / name} for name, result in rank.items()} for rank in results]


@pytest.fixture(scope="module")
def reference(policy_folder: str, groups: tuple[ScoredGroup, ...]) -> dict[str, Any]:
    return plain_torch_step(policy_folder, groups)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_makes_the_same_step(stage: int, alone: Results, reference: dict[str, Any]) -> None:
    result = alone[f"offload, stage {stage}"]
    assert_same_step(result, reference)
    assert_same_update(result, reference)


def test_two_ranks_make_the_same_step_with_an_offloaded_optimizer(
    pair: list[Results], reference: dict[str, Any]
) -> None:
    assert_same_step(pair[1]["offload, stage 2"], reference)


@pytest.mark.parametrize(("freeze", "trained"), [("vision", "language_model"), ("language", "visual")])
def test_what_is_frozen_stays_and_the_rest_has_its_gradient(
    freeze: str, trained: str, alone: Results, reference: dict[str, Any]
) -> None:
    result = alone[f"frozen {freeze}"]
    expected = {name: part for name, part in reference["gradient"].items() if trained in name}
    assert gradient_difference(result["gradient"], expected) < 1e-5
    before, after = result["parameters"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(trained in name for name in changed)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_first_gradient_of_adapters_is_that_of_the_layer_through_them(
    stage: int, alone: Results, reference: dict[str, Any]
) -> None:
    # W' = W + s B A with s = alpha / rank = 3 and B = 0 at the start: dL/dB = s (dL/dW) A^T, dL/dA = s B^T (dL/dW) = 0.
    result = alone[f"adapters, stage {stage}"]
    checkpoint, _ = find_newest(result["folder"] / "checkpoints")
    assert checkpoint is not None
    saved = dict(checkpoint.read())
    found = {name: part for name, part in result["gradient"].items() if "lora_B" in name}
    expected = {}
    for name in found:
        whole = reference["gradient"][name.replace(".lora_B", ".weight")]
        expected[name] = 3 * whole @ saved[f"master/{name.replace('lora_B', 'lora_A')}"].T
    assert len(found) > 10
    assert gradient_difference(found, expected) < 1e-5
    assert all(not part.any() for name, part in result["gradient"].items() if "lora_A" in name)


def test_adapters_start_as_the_policy_itself(alone: Results, reference: dict[str, Any]) -> None:
    found = [sample for group in alone["adapters, stage 3"]["logprobs"][0] for sample in group]
    for one, other in zip(found, reference["logprobs"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_in_bfloat16_learn_with_the_weights_that_are_published(stage: int, alone: Results) -> None:
    start, after = alone[f"adapters in bfloat16, stage {stage}"]["logprobs"]
    of_saved, _ = alone[f"model of adapters, stage {stage}"]["logprobs"]
    assert max(np.abs(one - other).max() for one, other in samples_of(start, after)) > 0.01
    for one, other in samples_of(after, of_saved):
        np.testing.assert_array_equal(one, other)


def test_two_ranks_learn_with_the_weights_of_adapters_that_are_published(pair: list[Results]) -> None:
    _, after = pair[0]["adapters in bfloat16, stage 3"]["logprobs"]
    of_saved, _ = pair[0]["model of adapters, stage 3"]["logprobs"]
    for one, other in samples_of(after, of_saved):
        np.testing.assert_array_equal(one, other)


def samples_of(some: Any, others: Any) -> Iterator[tuple[Any, Any]]:
    for group, other in zip(some, others, strict=True):
        yield from zip(group, other, strict=True)


@pytest.mark.parametrize(
    "job", ["adapters, stage 0", "adapters, stage 2", "adapters, stage 3", "adapters, vision frozen"]
)
def test_adapters_are_published_and_saved_merged(job: str, alone: Results, policy_folder: str) -> None:
    result = alone[job]
    start = AutoModelForImageTextToText.from_pretrained(policy_folder)
    saved = AutoModelForImageTextToText.from_pretrained(result["folder"] / "model")
    linear = {f"{name}.weight" for name, module in start.named_modules() if isinstance(module, torch.nn.Linear)}
    after = result["parameters"][-1]
    assert set(after) == {name for name, _ in start.named_parameters()}
    changed = {name for name, part in start.named_parameters() if not torch.equal(part, after[name])}
    assert changed <= linear
    assert any("language_model" in name for name in changed)
    assert any("visual" in name for name in changed) == ("frozen" not in job)
    assert all(torch.equal(part, after[name]) for name, part in saved.named_parameters())


@pytest.mark.parametrize(
    ("job", "ranks"),
    [
        ("adapters, stage 2", 1),
        ("adapters, stage 3", 1),
        ("adapters, stage 3", 2),
        ("frozen vision", 1),
        ("frozen language", 1),
    ],
)
def test_only_modules_that_training_can_change_are_published(
    job: str, ranks: int, alone: Results, pair: list[Results], policy_folder: str
) -> None:
    results = [rank[job] for rank in ([alone] if ranks == 1 else pair)]
    model = AutoModelForImageTextToText.from_pretrained(policy_folder)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    of_linear = {f"{name}.{part}" for name in linear for part in ("weight", "bias")}
    names = {name for name, _ in model.named_parameters()}
    expected = {
        "adapters, stage 2": of_linear & names,  # a bias too, which is not trained: engines load modules whole
        "adapters, stage 3": of_linear & names,
        "frozen vision": {name for name in names if "visual" not in name},
        "frozen language": {name for name in names if "visual" in name},
    }[job]
    found = {name: array for result in results for _, bucket in result["buckets"] for name, array in bucket.items()}
    assert set(found) == expected
    after = results[0]["parameters"][-1]
    assert all(array.tobytes() == after[name].numpy().tobytes() for name, array in found.items())
    declared = {info.name: (info.dtype, info.shape) for info in results[0]["declared"]}
    assert declared == {name: ("float32", tuple(after[name].shape)) for name in expected}


@pytest.mark.parametrize("job", ["adapters, stage 3", "adapters, stage 3, checkpointing"])
def test_two_ranks_make_the_adapters_of_one(job: str, alone: Results, pair: list[Results]) -> None:
    one, two = alone["adapters, stage 3"], pair[0][job]
    assert [report.loss for report in two["reports"]] == pytest.approx(
        [report.loss for report in one["reports"]], rel=1e-4
    )
    assert gradient_difference(two["gradient"], one["gradient"]) < 1e-6


@pytest.mark.parametrize("job", ["kl, stage 2", "kl, stage 3", "adapters and kl"])
def test_kl_is_measured_from_the_starting_policy(job: str, alone: Results) -> None:
    first, second = alone[job]["reports"]
    assert abs(first.stats["kl"]) < 1e-9
    assert second.stats["kl"] > 1e-5


def test_the_reference_is_the_same_on_one_rank_and_two_and_at_all_stages(alone: Results, pair: list[Results]) -> None:
    found = [alone["kl, stage 2"], alone["kl, stage 3"], pair[0]["kl, stage 3"], pair[1]["kl, stage 3"]]
    kl = [result["reports"][1].stats["kl"] for result in found]
    assert kl == pytest.approx([kl[0]] * 4, rel=1e-3)  # after an update of Adam, see test_learner_rank.py


def test_kl_in_the_reward_changes_the_advantages(
    alone: Results, pair: list[Results], reference: dict[str, Any], policy_folder: str, groups: tuple[ScoredGroup, ...]
) -> None:
    # The policy is the starting policy: from each reward 0.2 * sum(sampler's - the policy's log-probs) is taken.
    logprobs = iter(reference["logprobs"])
    rewards = [
        np.array(
            [
                score.total - 0.2 * float((sample.trace.logprobs - next(logprobs)).sum())
                for sample, score in zip(group.group.samples, group.scores, strict=True)
            ]
        )
        for group in groups
    ]
    expected = plain_torch_step(policy_folder, groups, rewards)
    assert gradient_difference(expected["gradient"], reference["gradient"]) > 0.01
    for result in (alone["kl in the reward"], pair[1]["kl in the reward"]):
        assert_same_step(result, expected)


def test_the_learning_rate_falls_along_a_cosine(alone: Results) -> None:
    # Warm-up of 1 of 3 steps: the peak, then (1 + cos(0)) / 2 = 1 and (1 + cos(pi / 2)) / 2 = 0.5 of it.
    rates = [report.stats["learning_rate"] for report in alone["cosine"]["reports"]]
    assert rates == pytest.approx([LEARNING_RATE, LEARNING_RATE, LEARNING_RATE / 2])


@pytest.mark.parametrize("job", ["bad, stage 0", "bad, stage 2", "bad, stage 3"])
def test_a_refused_step_names_the_sample_and_keeps_its_group(job: str, alone: Results, bad: ScoredGroup) -> None:
    assert_refused_and_kept(alone[job], "The cause: group 5/basic/center (loss of sample 0, 1)", bad)


@pytest.mark.parametrize("job", ["bad, stage 0", "bad, stage 3"])
def test_two_ranks_agree_on_the_cause(job: str, pair: list[Results], bad: ScoredGroup) -> None:
    assert str(pair[0][job]["reports"][0]) == str(pair[1][job]["reports"][0])
    assert_refused_and_kept(pair[0][job], "The cause: group 5/basic/center (loss of sample 0, 1)", bad)


def test_a_gradient_that_is_not_finite_is_found_too(alone: Results, steep: ScoredGroup) -> None:
    assert_refused_and_kept(alone["steep"], "The cause: group 6/basic/center (gradient)", steep)


def test_replay_says_of_every_group_whether_it_is_finite(alone: Results) -> None:
    folder = alone["bad, stage 3"]["folder"] / "refused" / "step-000001"
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator.commands.cli", "replay", str(folder)],
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ended.stdout.splitlines() if "│" in line]
    assert {group: (samples, finite) for group, samples, _, finite in lines} == {
        "0/basic/center": ("4", "yes"),
        "2/basic/center": ("3", "yes"),
        "4/basic/center": ("3", "yes"),
        "5/basic/center": ("2", "no: group 5/basic/center (loss of sample 0, 1)"),
    }
    assert [np.isfinite(float(loss)) for _, _, loss, _ in lines] == [True, True, True, False]


def assert_refused_and_kept(result: dict[str, Any], cause: str, group: ScoredGroup) -> None:
    (error,) = result["reports"]
    assert isinstance(error, NonFiniteStep)
    assert str(error).startswith("step 1: the loss is ")
    assert cause in str(error)
    folder = result["folder"] / "refused" / "step-000001"
    assert str(folder) in str(error)
    kept, config, job = load_refused(folder)
    assert kept[-1].group.prompt == replace(group.group.prompt, gold=None)
    assert config.learning_rate == LEARNING_RATE
    assert job.temperature == TEMPERATURE
    assert json.loads((folder / "refused.json").read_text())["causes"] == [cause.removeprefix("The cause: ")]
    model = AutoModelForImageTextToText.from_pretrained(Path(job.model))
    assert all(torch.equal(part, result["parameters"][0][name]) for name, part in model.named_parameters())
